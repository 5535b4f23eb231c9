/* Stands in for python.exe, py.exe, schtasks.exe and icacls.exe under Wine: it tells the test who was called, where, with which
 * environment and arguments, then prints and returns what the test answers. Nothing is decided here (see wine.py).
 *
 * Asked, over 127.0.0.1:STANDIN_PORT, as UTF-8 with one item a line: path of this program, directory, the names
 * of the PYTHON and PIP_ variables that are set, arguments.
 * Answered: the exit code on the first line, then what to print. Without an answer the exit code is 250 or 251 and Windows'
 * error number is printed: silence must never be taken for a 0. */
#include <winsock2.h>
#include <windows.h>
#include <stdio.h>
#include <stdlib.h>

static void say(SOCKET desk, const wchar_t *text)
{
    static char line[65536];
    int length = WideCharToMultiByte(CP_UTF8, 0, text, -1, line, sizeof line - 1, NULL, NULL);
    line[length - 1] = '\n';
    send(desk, line, length, 0);
}

static int no_answer(const char *call, int code)
{
    printf("stand-in: no answer from the test, %s, error %d\n", call, WSAGetLastError());
    return code;
}

int wmain(int count, wchar_t **arguments)
{
    static wchar_t text[32768];
    static char answer[65536];
    struct sockaddr_in address = {0};
    WSADATA data;
    int length = 0, got;
    SOCKET desk;

    WSAStartup(MAKEWORD(2, 2), &data);
    desk = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((u_short)atoi(getenv("STANDIN_PORT")));
    for (int tries = 1; connect(desk, (struct sockaddr *)&address, sizeof address); tries++) {
        if (tries == 5)
            return no_answer("connect", 250);
        Sleep(200);
    }

    GetModuleFileNameW(NULL, text, 32768);
    say(desk, text);
    GetCurrentDirectoryW(32768, text);
    say(desk, text);
    text[0] = 0;
    for (wchar_t *each = GetEnvironmentStringsW(); *each; each += wcslen(each) + 1)
        if (!wcsncmp(each, L"PYTHON", 6) || !wcsncmp(each, L"PIP_", 4) || !wcsncmp(each, L"PY_", 3))
            wcsncat(wcscat(text, L" "), each, wcscspn(each, L"="));
    say(desk, text);
    for (int i = 1; i < count; i++)
        say(desk, arguments[i]);
    shutdown(desk, SD_SEND);

    while ((got = recv(desk, answer + length, sizeof answer - 1 - length, 0)) > 0)
        length += got;
    char *said = strchr(answer, '\n');
    if (!said)
        return no_answer("recv", 251);
    fputs(said + 1, stdout);
    return atoi(answer);
}
