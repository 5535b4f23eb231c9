/* Starts LAUNCH_LINE in LAUNCH_DIR as Explorer, a console or the Task Scheduler would: the command line is passed on to
 * CreateProcess as it stands (Wine's own start from Linux would quote it anew). The exit code, all 32 bits, is
 * written to the file LAUNCH_CODE. */
#include <windows.h>
#include <stdio.h>

int wmain(void)
{
    static wchar_t line[32768], directory[32768], file[32768];
    STARTUPINFOW start = {sizeof start};
    PROCESS_INFORMATION process;
    DWORD code;
    FILE *out;

    GetEnvironmentVariableW(L"LAUNCH_LINE", line, 32768);
    GetEnvironmentVariableW(L"LAUNCH_DIR", directory, 32768);
    GetEnvironmentVariableW(L"LAUNCH_CODE", file, 32768);
    if (!CreateProcessW(NULL, line, NULL, NULL, TRUE, 0, NULL, directory, &start, &process))
        return 250;
    WaitForSingleObject(process.hProcess, INFINITE);
    GetExitCodeProcess(process.hProcess, &code);
    out = _wfopen(file, L"w");
    fprintf(out, "%d", (int)code);
    fclose(out);
    return 0;
}
