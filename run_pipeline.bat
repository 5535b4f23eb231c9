@echo off
REM Runs mailing_pipeline.py in an environment of its own (.venv), which the first use creates: with the Python in the
REM folder "python" beside this file, if there is one, or else with an installed one.
REM
REM   double-click                         a manual run; the window stays open and says what came of it
REM   run_pipeline.bat OPTIONS             the same with options (--dry-run, --check ...); never waits for a key
REM   run_pipeline.bat --register-task     the hourly task of schedule_task.xml, for this folder and this user
REM   run_pipeline.bat --unregister-task   removes it again
REM
REM The exit code is the program's. What fails before the program starts is 2 (wrong setting up) or 3 (somebody
REM else is setting up). An argument with an ampersand must stand in quotes, as everywhere in cmd.
REM This file is pure ASCII with CRLF, for cmd reads it byte by byte in whatever code page the console has.

REM With delayed expansion a "!" in a folder name or an argument would vanish.
setlocal EnableExtensions DisableDelayedExpansion

REM The Task Scheduler starts programs in System32: everything here is relative to the folder of this file.
cd /d "%~dp0"
if not exist mailing_pipeline.py goto :say_no_folder

REM What Oracle, ArcGIS, OSGeo and others set for their own Python breaks this one. No program is taken from this
REM folder only because its name is py.bat or schtasks.exe. And -I: no module from here or from the user's own.
for %%V in (HOME PATH STARTUP USERBASE PLATLIBDIR) do set "PYTHON%%V="
for %%V in (PY_PYTHON PY_PYTHON3 PIP_USER PIP_TARGET PIP_PREFIX) do set "%%V="
set "NoDefaultCurrentDirectoryInExePath=1"
REM UTF-8 for Python's files and streams, rather than "chcp 65001", which would change the user's console.
set "ALONE=-I -X utf8"
set "VENV_EXE=.venv\Scripts\python.exe"
set "VENV_PYTHON=%VENV_EXE% %ALONE%"
set "TASK=mailing_pipeline"

if /i [%1]==[--unregister-task] goto :unregister_task
set CODE=0
call :is_ready
if not "%ERRORLEVEL%"=="0" call :prepare
if not "%CODE%"=="0" goto :end
if /i [%1]==[--register-task] goto :register_task

REM All on one line: this file may be another by the time the program ends, after an update, and cmd reads on where it
REM was. "goto" looks for its label anew. The line below it is for a call with a quote too few, which swallows the rest.
%VENV_PYTHON% mailing_pipeline.py %* & call set "CODE=%%ERRORLEVEL%%" & goto :end
set CODE=%ERRORLEVEL%

:end
REM Only a call without arguments can be a double-click. The task passes --scheduled: nobody is there to press a key.
if not [%1]==[] exit /b %CODE%
call :explain
pause
exit /b %CODE%


REM ---- The environment ------------------------------------------------------------------------------------------

:is_ready
REM The stamp, a copy of requirements.txt, is written last: a half-made environment has none, and an environment
REM made for other requirements has another one. Asking .venv's own Python also finds that its base is gone.
if not exist .venv\requirements.installed exit /b 1
set "SAME=import filecmp, sys; sys.exit(not filecmp.cmp('requirements.txt', '.venv/requirements.installed', False))"
%VENV_PYTHON% -c "%SAME%" >nul 2>&1
exit /b %ERRORLEVEL%

:prepare
echo Preparando o ambiente: so na primeira vez ou depois de uma atualizacao, alguns minutos. Nao feche esta janela.
echo Setting up: only the first time or after an update, a few minutes. Do not close this window.
if not exist .venv call :close_folder
REM Only one process can hold a file open for writing, and Windows lets go of it when that process ends, however
REM it ends: a double-click and the task cannot set up the same folder at the same time.
set SET_UP=busy
call :set_up 9>>.venv.lock
set CODE=3
if "%SET_UP%"=="busy" goto :say_busy
del .venv.lock >nul 2>&1
set CODE=0
if "%SET_UP%"=="done" exit /b
set CODE=2
goto :say_%SET_UP%

:close_folder
REM The first time: for this user and SYSTEM alone, whoever else may use this PC. Grants come first, so that nobody is
REM ever locked out of a folder of their own. What Windows refuses here, --check tells.
icacls.exe . /grant:r "%USERDOMAIN%\%USERNAME%:(OI)(CI)F" "*S-1-5-18:(OI)(CI)F" /q >nul 2>&1
if not "%ERRORLEVEL%"=="0" exit /b
icacls.exe . /inheritance:r /q >nul 2>&1
if not "%ERRORLEVEL%"=="0" exit /b
echo Esta pasta agora e so deste usuario (%USERNAME%): ela guarda senhas e dados de clientes.
echo This folder is now for this user alone (%USERNAME%): it holds passwords and customers' data.
exit /b

:set_up
set SET_UP=done
call :is_ready
if "%ERRORLEVEL%"=="0" exit /b 0
REM Windows lets nobody write to a program that runs: a run that is under way keeps its environment.
set SET_UP=busy
if exist %VENV_EXE% set "SET_UP=free" 2>nul >>%VENV_EXE%
if exist %VENV_EXE% if "%SET_UP%"=="busy" exit /b
set SET_UP=no_python
call :find_python
if not defined PYTHON exit /b
set SET_UP=no_venv
set PIP=-m pip
if "%PYTHON%"=="python\python.exe" if exist python\python*._pth goto :copy_python
%PYTHON% %ALONE% -m venv --clear .venv
if not "%ERRORLEVEL%"=="0" exit /b
goto :install

:copy_python
REM python.org's embeddable build has no venv and no pip: its copy is the environment, and pip runs from its own wheel.
if exist .venv rmdir /s /q .venv
md .venv\Scripts
copy /y python\* .venv\Scripts >nul
if not "%ERRORLEVEL%"=="0" exit /b
for %%P in (.venv\Scripts\python*._pth) do call :add_packages_to "%%P"
for %%W in (wheels\pip-*.whl) do set PIP="%%W\pip"

:install
set SET_UP=no_packages
REM wheels\ beside this file, if there, is all that is installed from: a PC without internet (see README.md).
set "SOURCE="
if exist wheels\ set "SOURCE=--no-index --find-links wheels"
set "HOW=--disable-pip-version-check --no-warn-script-location --only-binary :all:"
%VENV_PYTHON% %PIP% install %HOW% %SOURCE% -r requirements.txt
if not "%ERRORLEVEL%"=="0" exit /b
copy /y requirements.txt .venv\requirements.installed >nul
if "%ERRORLEVEL%"=="0" set SET_UP=done
exit /b

:add_packages_to
REM The one place where such a Python looks for modules. An empty line first: the last one may have no end.
echo.>>%1
echo Lib\site-packages>>%1
exit /b

:find_python
REM The launcher knows every installed Python. Without it, "python" may be one, or only Windows' pointer to its
REM Store. requirements.txt has wheels for 3.11 to 3.14, of 64 bits; where the newest is newer, an older one will do.
set "WANTED=import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) or sys.maxsize < 2**32)"
set "PYTHON="
call :try_python python\python.exe
call :try_python py.exe -3
call :try_python python.exe
for %%V in (14 13 12 11) do call :try_python py.exe -3.%%V
exit /b

:try_python
if defined PYTHON exit /b
%* %ALONE% -c "%WANTED%" >nul 2>&1
if "%ERRORLEVEL%"=="0" set "PYTHON=%*"
exit /b


REM ---- The task -------------------------------------------------------------------------------------------------

:register_task
set "PYTHON=%VENV_PYTHON%"
call :is_elsewhere
if not "%ERRORLEVEL%"=="0" goto :say_elsewhere
REM Windows wants the whole path. Python writes it into a copy that is pure ASCII whatever the folder is called
REM (accents as character references), for schtasks reads ANSI or UTF-16LE and refuses UTF-8:
REM github.com/fatso83/vmware-auto-suspend/issues/8
set "WRITE=import ntpath, re, sys, xml.sax.saxutils as xml; folder = xml.escape(ntpath.normpath(sys.argv[1]));"
set "WRITE=%WRITE% task = open('schedule_task.xml', encoding='ascii').read();"
set "WRITE=%WRITE% task = re.sub('(?<=<WorkingDirectory>).*?(?=</)', lambda _: folder, task);"
set "WRITE=%WRITE% open('.venv/schedule_task.xml', 'w', encoding='ascii', errors='xmlcharrefreplace').write(task)"
%VENV_PYTHON% -c "%WRITE%" "%~dp0."
if not "%ERRORLEVEL%"=="0" goto :say_no_task
schtasks.exe /create /tn "%TASK%" /xml ".venv\schedule_task.xml" /f
if not "%ERRORLEVEL%"=="0" goto :say_no_task
echo.
echo Tarefa registrada: de segunda a sabado, de hora em hora, das 08:00 as 20:00, com este usuario conectado.
echo Task registered: Monday to Saturday, every hour from 08:00 to 20:00, while this user is logged on.
schtasks.exe /query /tn "%TASK%" /fo list
exit /b 0

:unregister_task
call :find_python
if not defined PYTHON goto :say_no_python
call :is_elsewhere
if not "%ERRORLEVEL%"=="0" goto :say_elsewhere
schtasks.exe /delete /tn "%TASK%" /f
if not "%ERRORLEVEL%"=="0" goto :say_no_task
exit /b 0

:is_elsewhere
REM 1 where the task is that of another folder, which is printed. schtasks writes in one of several encodings, so that
REM only what is ASCII is compared.
schtasks.exe /query /tn "%TASK%" /xml >.task_there.xml 2>nul
set "LOOK=import html, ntpath, re, sys; there = open('.task_there.xml', 'rb').read();"
set "LOOK=%LOOK% there = there.replace(b'\0', b'').decode('latin-1');"
set "LOOK=%LOOK% found = html.unescape(''.join(re.findall('<WorkingDirectory>(.*?)</W', there)));"
set "LOOK=%LOOK% plain = lambda path: re.sub('[^ -~]|[?]', '', ntpath.normpath(path).lower());"
set "LOOK=%LOOK% sys.exit('<Exec>' in there and plain(found) != plain(sys.argv[1]) and (found or 1))"
%PYTHON% %ALONE% -c "%LOOK%" "%~dp0."
set ELSEWHERE=%ERRORLEVEL%
del .task_there.xml >nul 2>&1
exit /b %ELSEWHERE%


REM ---- What is said, in Portuguese (without accents, see above) and in English ------------------------------------

:say_no_folder
echo.
echo mailing_pipeline.py nao esta nesta pasta. Se voce abriu um ZIP, extraia tudo primeiro. Se a pasta e de rede
echo (\\servidor\...), copie-a para o disco deste computador.
echo mailing_pipeline.py is not in this folder. If you opened a ZIP, extract all of it first. If the folder is on the
echo network (\\server\...), copy it to this computer's disk.
set CODE=2
goto :end

:say_no_python
echo.
echo Falta um Python de 3.11 a 3.14, de 64 bits (foram tentados "python\python.exe", "py" e "python"). Instale o 3.14 de
echo python.org, so para o seu usuario (nao precisa de administrador), marque "Add python.exe to PATH" e execute de novo.
echo A Python 3.11 to 3.14, 64-bit, is missing ("python\python.exe", "py" and "python" were tried). Install 3.14 from
echo python.org, for your user only (no administrator needed), tick "Add python.exe to PATH" and run this again.
echo Sem instalador / without an installer: README.md, "Without an installer".
exit /b 2

:say_no_venv
echo.
echo Nao foi possivel criar a pasta .venv. Feche as outras janelas deste programa, veja se ha espaco no disco e se a
echo pasta permite gravar, e execute de novo.
echo The folder .venv could not be created. Close the other windows of this program, see that the disk has room and
echo the folder can be written to, and run this again.
exit /b 2

:say_no_packages
echo.
echo Nao foi possivel instalar os pacotes do Python; o motivo esta acima. Sem internet, ou com ela bloqueada: traga a
echo pasta wheels de outro computador (README.md, "Without internet"), ponha-a ao lado deste arquivo e execute de novo.
echo The Python packages could not be installed; the reason stands above. Without internet, or if it is blocked: bring
echo the folder wheels from another computer (README.md, "Without internet"), put it beside this file, run this again.
exit /b 2

:say_busy
echo.
echo Outra janela deste programa, ou a tarefa, esta trabalhando. Espere ela terminar e execute de novo.
echo Another window of this program, or the task, is at work. Wait until it has finished and run this again.
exit /b 3

:say_no_task
echo.
echo O Windows recusou; o motivo esta acima. "Acesso negado": uma politica (GPO) nao deixa este usuario alterar
echo tarefas, ou um administrador criou uma com este nome. Peca ao administrador (o texto esta em README.md).
echo Windows refused; the reason stands above. "Access is denied": a policy (GPO) does not let this user change
echo tasks, or an administrator made one with this name. Ask the administrator (the wording is in README.md).
exit /b 2

:say_elsewhere
echo.
echo Ja existe uma tarefa %TASK%, da pasta acima, e nao desta. Nada foi mudado. Remova-a primeiro, naquela pasta:
echo run_pipeline.bat --unregister-task   (se a pasta nao existe mais: schtasks /delete /tn %TASK%)
echo There is a task %TASK% already, of the folder above and not of this one. Nothing was changed. Remove it first, in
echo that folder: run_pipeline.bat --unregister-task   (if it is gone: schtasks /delete /tn %TASK%)
exit /b 2

:explain
echo.
echo Codigo / Code: %CODE%
if "%CODE%"=="0" echo Tudo certo: o que devia ser enviado foi enviado, ou ja tinha sido, ou podia estar vazio. Nada a fazer.
if "%CODE%"=="0" echo All well: what was due was delivered, or had been already, or was allowed to be empty. Nothing to do.
if "%CODE%"=="1" echo Erro do programa. Mande o arquivo mais novo da pasta logs a quem cuida do programa.
if "%CODE%"=="1" echo A bug in the program. Send the newest file of the folder logs to whoever looks after it.
if "%CODE%"=="2" echo Configuracao, registro ou uso errado, ou nenhuma consulta que sirva: nada foi iniciado. Corrija o que dizem as linhas acima.
if "%CODE%"=="2" echo Settings, ledger or usage wrong, or no usable query file: nothing was started. Mend what the lines above say.
if "%CODE%"=="3" echo Outra execucao esta em andamento. Espere ela terminar; se ainda faltar algo, execute de novo.
if "%CODE%"=="3" echo Another run is active. Wait until it has finished; if something is still missing, run again.
if "%CODE%"=="4" echo Algumas campanhas falharam ou foram retidas. Leia acima quais e por que, corrija e repita: nada vai duas vezes.
if "%CODE%"=="4" echo Some campaigns failed or were held. Read above which and why, mend it and run again: nothing is sent twice.
if "%CODE%"=="5" echo Banco de dados: nada pode ser exportado. Veja a rede, a VPN e a mensagem acima; depois execute de novo.
if "%CODE%"=="5" echo Database: nothing could be exported. See the network, the VPN and the message above; then run again.
if "%CODE%"=="6" echo SFTP: nada pode ser entregue. Veja a rede e a mensagem acima; depois execute de novo.
if "%CODE%"=="6" echo SFTP: nothing could be delivered. See the network and the message above; then run again.
if "%CODE%"=="7" echo Fora do horario: nada foi enviado. Para enviar mesmo assim: run_pipeline.bat --ignore-hours
if "%CODE%"=="7" echo Outside the hours: nothing was sent. To send all the same: run_pipeline.bat --ignore-hours
if %CODE% LSS 0 echo O programa foi interrompido: janela fechada ou Ctrl+C. Execute de novo: nada vai duas vezes.
if %CODE% LSS 0 echo The program was interrupted: window closed or Ctrl+C. Run it again: nothing is sent twice.
if %CODE% GTR 7 echo O programa nao terminou normalmente. Execute de novo; se repetir, mande o arquivo mais novo da pasta logs.
if %CODE% GTR 7 echo The program did not end normally. Run it again; if it repeats, send the newest file of the folder logs.
echo.
exit /b 0
