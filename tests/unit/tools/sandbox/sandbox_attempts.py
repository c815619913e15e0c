"""Ways out of a sandbox, each a program that prints a word, ESCAPED, where it works.

Collected from what is publicly known of container, chroot and seccomp escapes. `W` tells a program what lies outside.
`PLAIN` work for any process that is not locked in, which a test shows; those of `sandbox_attempts_other` need
rights, or harm the machine.
"""

from __future__ import annotations

CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return result if result >= 0 else -ctypes.get_errno()
"""

PLAIN: dict[str, str] = {
    "read a file by its path": "print(open(W['canary']).read(), 'ESCAPED')",
    "read /etc/passwd": "print(open('/etc/passwd').read(), 'ESCAPED')",
    "read a file through a symbolic link": """
import os
os.symlink(W['canary'], 'l')
print(open('l').read(), 'ESCAPED')
""",
    "read a file through a link to its folder": """
import os
os.symlink(W['private'], 'd')
print(open('d/canary').read(), 'ESCAPED')
""",
    "read a file through ..": "print(open('../' * 40 + W['canary']).read(), 'ESCAPED')",
    "climb by descriptors": """
import os
at = os.open('.', os.O_RDONLY)
for _ in range(40):
    at = os.open('..', os.O_RDONLY, dir_fd=at)
print(os.read(os.open(W['canary'].lstrip('/'), os.O_RDONLY, dir_fd=at), 100), 'ESCAPED')
""",
    "read a file below /proc/self/root": "print(open('/proc/self/root' + W['canary']).read(), 'ESCAPED')",
    "read a file below another's root": "print(open(f\"/proc/{W['victim']}/root\" + W['canary']).read(), 'ESCAPED')",
    "read another's environment": """
text = open(f"/proc/{W['host']}/environ").read()
print(text, 'ESCAPED')
""",
    "read another's command line": "print(open(f\"/proc/{W['victim']}/cmdline\").read()[0], 'ESCAPED')",
    "list another's descriptors": "import os; print(os.listdir(f\"/proc/{W['host']}/fd\"), 'ESCAPED')",
    "open another's descriptor": """
print(open(f"/proc/{W['host']}/fd/{W['descriptor']}").read(), 'ESCAPED')
""",
    "enter another's folder": "import os; os.chdir(f\"/proc/{W['victim']}/cwd\"); print('ESCAPED')",
    "write a file by its path": "open(W['canary'], 'a').write('x'); print('ESCAPED')",
    "truncate a file": "import os; os.truncate(W['canary'], 0); print('ESCAPED')",
    "remove a file": "import os; os.unlink(W['canary']); print('ESCAPED')",
    "rename a file": "import os; os.rename(W['canary'], W['canary'] + '2'); print('ESCAPED')",
    "make a file beside": "open(W['private'] + '/new', 'w'); print('ESCAPED')",
    "make a folder beside": "import os; os.mkdir(W['private'] + '/folder'); print('ESCAPED')",
    "change a file's mode": "import os; os.chmod(W['canary'], 0o600); print('ESCAPED')",
    "change a file's time": "import os; os.utime(W['canary'], (1, 1)); print('ESCAPED')",
    "list a folder": "import os; print(os.listdir(W['private'])[0], 'ESCAPED')",
    "list the project": "import os; assert 'pyproject.toml' in os.listdir(W['here']); print('ESCAPED')",
    "shared memory": "print(open(W['shared']).read(), 'ESCAPED')",
    "plant a .pth file": """
import os, sysconfig
path = sysconfig.get_path('purelib') + '/callboard-planted.pth'
open(path, 'w').close()
os.unlink(path)
print('ESCAPED')
""",
    "change the standard library": """
import os, sysconfig
os.close(os.open(os.__file__, os.O_RDWR))
print('ESCAPED')
""",
    "write where the program lies": """
import os
path = os.path.dirname(os.path.realpath(W['program'])) + '/callboard-planted'
open(path, 'w').close()
os.unlink(path)
print('ESCAPED')
""",
    "read the machine's name service": "print(open('/etc/hosts').read() + open('/etc/resolv.conf').read(), 'ESCAPED')",
    "read the kernel's settings": "print(open('/proc/sys/kernel/hostname').read(), 'ESCAPED')",
    "read the list of mounts' devices": "print(open('/proc/partitions').read(), 'ESCAPED')",
    "look at the devices of the machine": "import os; print(os.listdir('/sys/class')[0], 'ESCAPED')",
    "open a terminal": "import os; os.open('/dev/ptmx', os.O_RDWR); print('ESCAPED')",
    "open /dev/full": "open('/dev/full').read(1); print('ESCAPED')",
    "watch a folder": CALL
    + """
assert libc.inotify_add_watch(libc.inotify_init(), W['private'].encode(), 0xfff) >= 0
print('ESCAPED')
""",
    # Processes.
    "signal a process": "import os, signal; os.kill(W['victim'], signal.SIGUSR1); print('ESCAPED')",
    "signal the host": "import os; os.kill(W['host'], 0); print('ESCAPED')",
    "signal by thread": CALL + "assert call(234, W['victim'], W['victim'], 10) == 0; print('ESCAPED')",
    "signal with a value": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
assert libc.sigqueue(W['victim'], 10, ctypes.c_void_p(1)) == 0
print('ESCAPED')
""",
    "signal by a pidfd": """
import os, signal
signal.pidfd_send_signal(os.pidfd_open(W['victim']), signal.SIGUSR1)
print('ESCAPED')
""",
    "see another process's scheduling": "import os; os.sched_getaffinity(W['victim']); print('ESCAPED')",
    "change another process's priority": "import os; os.setpriority(os.PRIO_PROCESS, W['victim'], 5); print('ESCAPED')",
    "change another process's limits": """
import resource
resource.prlimit(W['victim'], resource.RLIMIT_NOFILE)
print('ESCAPED')
""",
    "trace a process": CALL
    + """
assert call(101, 0x4206, W['victim'], 0, 0) == 0  # PTRACE_SEIZE
call(101, 17, W['victim'], 0, 0)
print('ESCAPED')
""",
    "read a process's memory": CALL
    + """
import re
for line in open(f"/proc/{W['victim']}/maps"):
    found = re.match(r'([0-9a-f]+)-[0-9a-f]+ r', line)
    if found:
        break
buffer = ctypes.create_string_buffer(8)
class Vector(ctypes.Structure):
    _fields_ = [('base', ctypes.c_void_p), ('length', ctypes.c_size_t)]
ours, theirs = Vector(ctypes.addressof(buffer), 8), Vector(int(found[1], 16), 8)
assert call(310, W['victim'], ctypes.byref(ours), 1, ctypes.byref(theirs), 1, 0) == 8
print('ESCAPED')
""",
    # Descriptors and the environment.
    "find a descriptor of the host's": """
import os
for number in range(3, 1024):
    try:
        os.lseek(number, 0, 0)
        print(os.read(number, 100), 'ESCAPED')
    except OSError:
        pass
""",
    "find credentials in the environment": """
import os
assert any('CREDENTIALS' in name for name in os.environ) or b'CREDENTIALS' in open('/proc/self/environ', 'rb').read()
print('ESCAPED')
""",
    # The network.
    "connect by TCP": "import socket; socket.create_connection(('127.0.0.1', W['tcp']), 2); print('ESCAPED')",
    "connect by TCP over IPv6": "import socket; socket.create_connection(('::1', W['tcp6']), 2); print('ESCAPED')",
    "send a datagram": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', W['udp']))
print('ESCAPED')
""",
    "listen": "import socket; socket.create_server(('127.0.0.1', 0)); print('ESCAPED')",
    "listen on every address": "import socket; socket.create_server(('0.0.0.0', 0)); print('ESCAPED')",
    "connect to an abstract socket": """
import socket
socket.socket(socket.AF_UNIX).connect('\\0' + W['abstract'])
print('ESCAPED')
""",
    "connect to a socket by path": """
import socket
socket.socket(socket.AF_UNIX).connect(W['stream'])
print('ESCAPED')
""",
    "send to a socket by path": """
import socket
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b'x', W['datagrams'])
print('ESCAPED')
""",
    "point a pair of datagram sockets elsewhere": """
import socket
one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
one.sendto(b'x', W['datagrams'])
print('ESCAPED')
""",
    "point a pair of stream sockets elsewhere": """
import socket
one, other = socket.socketpair()
for function in (lambda: one.connect(W['stream']), lambda: one.connect('\\0' + W['abstract'])):
    try:
        function()
        print('ESCAPED')
    except OSError:
        pass
socket.socket(socket.AF_UNIX).connect(W['stream'])  # for who is not locked in
print('ESCAPED')
""",
    "ask the kernel by netlink": "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); print('ESCAPED')",
    "look up a name": """
import socket
print(socket.getaddrinfo('localhost', 80), socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 'ESCAPED')
""",
    "connect from the shell": """
import subprocess
done = subprocess.run(['bash', '-c', f"exec 5<>/dev/tcp/127.0.0.1/{W['tcp']} && echo ESC''APED"], capture_output=True)
print(done.stdout.decode())
""",
    "connect from another interpreter": """
import subprocess
code = f"import socket; socket.create_connection(('127.0.0.1', {W['tcp']}), 2); print('ESC' + 'APED')"
print(subprocess.run([W['program'], '-I', '-S', '-c', code], capture_output=True).stdout.decode())
""",
    # What is written and run.
    "run what it wrote": """
import os, subprocess
open('x', 'w').write('#!/bin/sh\\nprintf %s%s ESC APED')
os.chmod('x', 0o700)
print(subprocess.run(['./x'], capture_output=True).stdout.decode())
""",
    "run a copy of a program": """
import shutil, subprocess
shutil.copy('/bin/true', 'true')
subprocess.run(['./true'], check=True)
print('ESCAPED')
""",
    "run from memory": """
import os
number = os.memfd_create('x', 0)
os.write(number, open('/bin/true', 'rb').read())
if os.fork() == 0:
    os.execv(f'/proc/self/fd/{number}', ['x'])
assert os.wait()[1] == 0
print('ESCAPED')
""",
    "make a namespace": CALL
    + """
if os.fork() == 0:
    os._exit(0 if libc.unshare(0x10000000) == 0 else 1)
assert os.wait()[1] == 0
print('ESCAPED')
""",
    "make a namespace by clone": CALL
    + """
child = call(56, 0x10000000 | 17, 0, 0, 0, 0)
if child == 0:
    libc._exit(0)
assert child > 0
print('ESCAPED')
""",
    "make a namespace by clone3": CALL
    + """
import struct
order = struct.pack('8Q', 0x10000000, 0, 0, 0, 17, 0, 0, 0)
child = call(435, order, len(order))
if child == 0:
    libc._exit(0)
assert child > 0
print('ESCAPED')
""",
}
