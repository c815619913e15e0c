"""Ways out of a sandbox, each a program that prints a word, ESCAPED, where it works.

Collected from what is publicly known of container, chroot and seccomp escapes. `W` tells a program what lies outside.
`PLAIN` work for any process that is not locked in, which a test shows; the others need rights, or harm the machine.
"""

from __future__ import annotations

_CALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
    return result if result >= 0 else -ctypes.get_errno()
"""

# Files.
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
    "watch a folder": _CALL
    + """
assert libc.inotify_add_watch(libc.inotify_init(), W['private'].encode(), 0xfff) >= 0
print('ESCAPED')
""",
    # Processes.
    "signal a process": "import os, signal; os.kill(W['victim'], signal.SIGUSR1); print('ESCAPED')",
    "signal the host": "import os; os.kill(W['host'], 0); print('ESCAPED')",
    "signal by thread": _CALL + "assert call(234, W['victim'], W['victim'], 10) == 0; print('ESCAPED')",
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
    "trace a process": _CALL
    + """
assert call(101, 0x4206, W['victim'], 0, 0) == 0  # PTRACE_SEIZE
call(101, 17, W['victim'], 0, 0)
print('ESCAPED')
""",
    "read a process's memory": _CALL
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
    "make a namespace": _CALL
    + """
if os.fork() == 0:
    os._exit(0 if libc.unshare(0x10000000) == 0 else 1)
assert os.wait()[1] == 0
print('ESCAPED')
""",
    "make a namespace by clone": _CALL
    + """
child = call(56, 0x10000000 | 17, 0, 0, 0, 0)
if child == 0:
    libc._exit(0)
assert child > 0
print('ESCAPED')
""",
    "make a namespace by clone3": _CALL
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

# These need rights, or would change the machine: here they must fail like the others.
OTHER: dict[str, str] = {
    "hard link to a file": "import os; os.link(W['canary'], 'h'); print(open('h').read(), 'ESCAPED')",
    "link to a descriptor": """
import os
os.link(f"/proc/self/fd/{W['descriptor']}", 'h', follow_symlinks=True)
print(open('h').read(), 'ESCAPED')
""",
    "read a file below the first process's root": "print(open('/proc/1/root' + W['canary']).read(), 'ESCAPED')",
    "read the first process's environment": "print(open('/proc/1/environ').read(), 'ESCAPED')",
    "read the first process's memory": "open('/proc/1/mem', 'rb').read(1); print('ESCAPED')",
    "list the first process's descriptors": "import os; print(os.listdir('/proc/1/fd')); print('ESCAPED')",
    "enter the first process's namespaces": _CALL
    + """
for kind in ('user', 'mnt', 'net', 'pid'):
    try:
        number = os.open(f'/proc/1/ns/{kind}', os.O_RDONLY)
    except OSError:
        continue
    if call(308, number, 0) == 0:
        print('ESCAPED')
""",
    "read /etc/shadow": "print(open('/etc/shadow').read(), 'ESCAPED')",
    "set the program for core dumps": "open('/proc/sys/kernel/core_pattern', 'w').write('|/x'); print('ESCAPED')",
    "call a program by a cgroup's release agent": """
import glob
for path in glob.glob('/sys/fs/cgroup/**/release_agent', recursive=True):
    open(path, 'w').write('/x')
    print('ESCAPED')
""",
    "press the magic key": "open('/proc/sysrq-trigger', 'w').write('h'); print('ESCAPED')",
    "read the kernel's memory": """
for path in ('/dev/mem', '/dev/kmem', '/proc/kcore', '/dev/port', '/dev/kmsg', '/proc/kallsyms', '/proc/keys'):
    try:
        open(path, 'rb').read(1)
        print('ESCAPED', path)
    except OSError:
        pass
""",
    "read the disk": """
import glob
for path in glob.glob('/dev/[vsn][dv]*') + glob.glob('/dev/loop*') + ['/dev/fuse', '/dev/net/tun', '/dev/kvm']:
    try:
        open(path, 'rb')
        print('ESCAPED', path)
    except OSError:
        pass
""",
    "make a device": """
import os, stat
for kind, number in ((stat.S_IFBLK, os.makedev(254, 0)), (stat.S_IFCHR, os.makedev(1, 1))):
    try:
        os.mknod(f'd{kind}', kind | 0o600, number)
        open(f'd{kind}', 'rb').read(1)
        print('ESCAPED')
    except OSError:
        pass
""",
    "open by handle": _CALL
    + """
import struct
for node in range(2, 40):
    handle = struct.pack('IiQ', 8, 1, node)
    for mount in (os.open('/', os.O_RDONLY), os.open('/usr', os.O_RDONLY)):
        if call(304, mount, handle, os.O_RDONLY) >= 0:
            print('ESCAPED')
""",
    "leave by chroot": _CALL
    + """
os.mkdir('jail')
if libc.chroot(b'jail') == 0:
    for _ in range(40):
        os.chdir('..')
    libc.chroot(b'.')
    print(open(W['canary']).read(), 'ESCAPED')
""",
    "mount": _CALL
    + """
os.mkdir('m')
for kind in (b'tmpfs', b'proc', b'sysfs', b'overlay', b'cgroup2', b'devtmpfs'):
    if libc.mount(b'none', b'm', kind, 0, None) == 0:
        print('ESCAPED')
""",
    "mount by the newer calls": _CALL
    + """
if call(430, b'tmpfs', 0) >= 0 or call(428, -100, b'/', 1) >= 0:
    print('ESCAPED')
""",
    "make a mount writable": _CALL
    + """
import struct
for path in (b'/', b'/usr'):
    newer = call(442, -100, path, 0, struct.pack('4Q', 0, 1, 0, 0), 32)
    if newer == 0 or libc.mount(None, path, None, 0x1020, None) == 0:
        print('ESCAPED')
""",
    "take a mount away": _CALL
    + """
for path in (b'/proc', b'/usr', b'/box', b'/'):
    if libc.umount2(path, 2) == 0:
        print('ESCAPED')
""",
    "change the root": _CALL + "assert call(155, b'.', b'.') == 0; print('ESCAPED')",
    "have a pipe signal its owner": """
import fcntl, os
inward, outward = os.pipe()
fcntl.fcntl(inward, fcntl.F_SETOWN, W['victim'])
fcntl.fcntl(inward, 10, 10)  # F_SETSIG, SIGUSR1
fcntl.fcntl(inward, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
os.write(outward, b'x')
""",
    "signal everybody": """
import os, signal
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
os.kill(-1, signal.SIGUSR1)
""",
    "kill the first process": """
import os, signal
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGSEGV):
    try:
        os.kill(1, number)
    except OSError:
        pass
""",
    "signal a group outside": """
import os, signal
for group in (W['host'], W['victim'], W['group']):
    try:
        os.killpg(group, signal.SIGUSR1)
        print('ESCAPED')
    except OSError:
        pass
""",
    "take a descriptor of the first process": _CALL
    + """
number = call(434, 1, 0)
for wanted in range(20):
    if call(438, number, wanted, 0) >= 0:
        print('ESCAPED')
""",
    "trace the first process": _CALL
    + "\nif call(101, 16, 1, 0, 0) == 0 or call(101, 0x4206, 1, 0, 0) == 0:\n    print('ESCAPED')",
    "trace a child": _CALL
    + """
child = os.fork()
if child == 0:
    os._exit(0 if call(101, 0, 0, 0, 0) < 0 else 1)
if os.wait()[1] != 0:
    print('ESCAPED')
""",
    "become root": """
import os
for function in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        function()
        print('ESCAPED')
    except OSError:
        pass
""",
    "become root by a program": """
import glob, os, stat, subprocess
for path in glob.glob('/usr/bin/*') + glob.glob('/usr/sbin/*') + glob.glob('/usr/lib/*/*helper*'):
    try:
        mode = os.stat(path).st_mode
    except OSError:
        continue
    if stat.S_ISREG(mode) and mode & 0o6000:
        subprocess.run([path, '-c', 'cat ' + W['canary']], stdin=subprocess.DEVNULL, timeout=5)
print(subprocess.run(['sh', '-c', 'umask; su -c "echo ESC""APED" </dev/null'], capture_output=True).stdout.decode())
""",
    "get capabilities back": _CALL
    + """
import struct
if call(126, struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[0xffffffff] * 6)) == 0:
    print('ESCAPED')
status = open('/proc/self/status').read()
for line in status.splitlines():
    if line.startswith('Cap') and int(line.split()[1], 16):
        print('ESCAPED', line)
""",
    "undo no_new_privs": _CALL + "\nif libc.prctl(38, 0, 0, 0, 0) == 0:\n    print('ESCAPED')",
    "load libraries into other programs": """
import os, subprocess
open('x.so', 'wb').write(b'\\x7fELF')
environment = {**os.environ, 'LD_PRELOAD': os.getcwd() + '/x.so', 'LD_AUDIT': os.getcwd() + '/x.so'}
print(subprocess.run(['cat', W['canary']], env=environment, capture_output=True).stdout.decode())
subprocess.run(['/lib64/ld-linux-x86-64.so.2', './x.so'], capture_output=True)
""",
    "run by the loader what may not run": """
import shutil, subprocess
shutil.copy('/bin/echo', 'echo')
print(subprocess.run(['/lib64/ld-linux-x86-64.so.2', './echo', 'ESC' + 'APED'], capture_output=True).stdout.decode())
""",
    "use the 32-bit calls": """
import ctypes, mmap, os
# push rbx; mov eax, 20 (getpid); int 0x80; pop rbx; ret
code = bytes([0x53, 0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0x5b, 0xc3])
memory = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(code)
function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))
if function() == os.getpid():
    print('ESCAPED')
""",
    "use the x32 calls": _CALL + "\nif call(0x40000000 | 39) == os.getpid():\n    print('ESCAPED')",
    "type into a terminal": _CALL
    + """
import fcntl
for number in range(3):
    for request in (0x5412, 0x541c, 0x5412 | 1 << 32, 0x5423):
        if call(16, number, request, b'x') == 0:
            print('ESCAPED')
        if call(16, number, request, b'x') not in (-25,):
            print('ESCAPED', request, call(16, number, request, b'x'))
""",
    "open raw and packet sockets": """
import socket
for family in range(0, 46):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socket(family, kind)
            print('ESCAPED', family, kind)
        except (OSError, ValueError):
            pass
""",
    "pairs of other sockets": """
import socket
for family in range(0, 46):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
        try:
            socket.socketpair(family, kind)
            print('ESCAPED', family, kind)
        except (OSError, ValueError):
            pass
""",
    "io_uring": _CALL
    + "\nif call(425, 8, ctypes.create_string_buffer(120)) >= 0 or call(425, 8, None) != -38:\n    print('ESCAPED')",
    "hand descriptors to the host": """
import array, os, socket
control = socket.socket(fileno=os.dup(3))
number = os.open('/dev/null', os.O_RDONLY)
control.sendmsg([b'\\0\\0\\0'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [number] * 100))])
""",
    "take descriptors from the host": """
import array, os, socket
control = socket.socket(fileno=os.dup(3))
control.setblocking(False)
try:
    data, extra, flags, address = control.recvmsg(1000, 1000)
    if extra:
        print('ESCAPED')
except OSError:
    pass
""",
    "raise its own limits": """
import resource
for name in ('NPROC', 'AS', 'FSIZE', 'NOFILE', 'CORE'):
    which = getattr(resource, 'RLIMIT_' + name)
    soft, hard = resource.getrlimit(which)
    if hard == resource.RLIM_INFINITY and name != 'NPROC':
        print('ESCAPED', name)
    try:
        resource.setrlimit(which, (hard, hard + 1))
        print('ESCAPED', name)
    except (OSError, ValueError):
        pass
""",
    "run as real-time": """
import os
try:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    print('ESCAPED')
except OSError:
    pass
""",
    "a filter of its own with a listener": _CALL
    + "\nif call(317, 1, 8, None) != -38 or call(317, 0, 0, None) == 0:\n    print('ESCAPED')",
    "the first folder's parent": """
import os
assert os.stat('/..').st_ino == os.stat('/').st_ino
try:
    assert not [name for name in os.listdir('/') if name in ('var', 'home', 'srv', 'boot', 'sys', 'run', 'mnt')]
except AssertionError:
    print('ESCAPED')
except OSError:
    pass
""",
}

# Calls into the kernel that code has no business with: name, number on x86-64, arguments that would do no harm.
CALLS: dict[str, tuple[int, tuple[int, ...]]] = {
    "ptrace": (101, (0, 0, 0, 0)),
    "syslog": (103, (10, 0, 0)),
    "modify_ldt": (154, (0, 0, 0)),
    "adjtimex": (159, (0,)),
    "chroot": (161, (0,)),
    "acct": (163, (0,)),
    "settimeofday": (164, (0, 0)),
    "mount": (165, (0, 0, 0, 0, 0)),
    "swapon": (167, (0, 0)),
    "reboot": (169, (0, 0, 0, 0)),
    "sethostname": (170, (0, 0)),
    "iopl": (172, (3,)),
    "ioperm": (173, (0, 1, 1)),
    "init_module": (175, (0, 0, 0)),
    "quotactl": (179, (0, 0, 0, 0)),
    "shmget": (29, (0, 4096, 0o1600)),
    "semget": (64, (0, 1, 0o1600)),
    "msgget": (68, (0, 0o1600)),
    "mq_open": (240, (0, 0, 0, 0)),
    "kexec_load": (246, (0, 0, 0, 0)),
    "add_key": (248, (0, 0, 0, 0, 0)),
    "request_key": (249, (0, 0, 0, 0)),
    "keyctl": (250, (0, -3, 0)),
    "migrate_pages": (256, (0, 0, 0, 0)),
    "vmsplice": (278, (0, 0, 0, 0)),
    "move_pages": (279, (0, 0, 0, 0, 0, 0)),
    "perf_event_open": (298, (0, 0, -1, -1, 0)),
    "fanotify_init": (300, (0, 0)),
    "name_to_handle_at": (303, (0, 0, 0, 0, 0)),
    "open_by_handle_at": (304, (0, 0, 0)),
    "clock_adjtime": (305, (0, 0)),
    "setns": (308, (0, 0)),
    "process_vm_readv": (310, (1, 0, 0, 0, 0, 0)),
    "process_vm_writev": (311, (1, 0, 0, 0, 0, 0)),
    "kcmp": (312, (1, 1, 0, 0, 0)),
    "finit_module": (313, (0, 0, 0)),
    "memfd_create": (319, (0, 0)),
    "kexec_file_load": (320, (0, 0, 0, 0, 0)),
    "bpf": (321, (0, 0, 0)),
    "execveat": (322, (0, 0, 0, 0, 0)),
    "userfaultfd": (323, (0,)),
    "pkey_alloc": (330, (0, 0)),
    "io_setup": (206, (1, 0)),
    "io_uring_setup": (425, (1, 0)),
    "io_uring_enter": (426, (0, 0, 0, 0, 0)),
    "open_tree": (428, (0, 0, 0)),
    "move_mount": (429, (0, 0, 0, 0, 0)),
    "fsopen": (430, (0, 0)),
    "fspick": (433, (0, 0, 0)),
    "clone3": (435, (0, 0)),
    "pidfd_getfd": (438, (0, 0, 0)),
    "process_madvise": (440, (0, 0, 0, 0, 0)),
    "mount_setattr": (442, (0, 0, 0, 0, 0)),
    "quotactl_fd": (443, (0, 0, 0, 0)),
    "memfd_secret": (447, (0,)),
    "process_mrelease": (448, (0, 0)),
    "of no name yet": (999, ()),
}
CALL = _CALL
