"""Ways out of a sandbox that need rights, or would change the machine: here they must fail like the others."""

from __future__ import annotations

from sandbox_attempts import CALL

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
    "enter the first process's namespaces": CALL
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
    "open by handle": CALL
    + """
import struct
for node in range(2, 40):
    handle = struct.pack('IiQ', 8, 1, node)
    for mount in (os.open('/', os.O_RDONLY), os.open('/usr', os.O_RDONLY)):
        if call(304, mount, handle, os.O_RDONLY) >= 0:
            print('ESCAPED')
""",
    "leave by chroot": CALL
    + """
os.mkdir('jail')
if libc.chroot(b'jail') == 0:
    for _ in range(40):
        os.chdir('..')
    libc.chroot(b'.')
    print(open(W['canary']).read(), 'ESCAPED')
""",
    "mount": CALL
    + """
os.mkdir('m')
for kind in (b'tmpfs', b'proc', b'sysfs', b'overlay', b'cgroup2', b'devtmpfs'):
    if libc.mount(b'none', b'm', kind, 0, None) == 0:
        print('ESCAPED')
""",
    "mount by the newer calls": CALL
    + """
if call(430, b'tmpfs', 0) >= 0 or call(428, -100, b'/', 1) >= 0:
    print('ESCAPED')
""",
    "make a mount writable": CALL
    + """
import struct
for path in (b'/', b'/usr'):
    newer = call(442, -100, path, 0, struct.pack('4Q', 0, 1, 0, 0), 32)
    if newer == 0 or libc.mount(None, path, None, 0x1020, None) == 0:
        print('ESCAPED')
""",
    "take a mount away": CALL
    + """
for path in (b'/proc', b'/usr', b'/box', b'/'):
    if libc.umount2(path, 2) == 0:
        print('ESCAPED')
""",
    "change the root": CALL + "assert call(155, b'.', b'.') == 0; print('ESCAPED')",
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
    "take a descriptor of the first process": CALL
    + """
number = call(434, 1, 0)
for wanted in range(20):
    if call(438, number, wanted, 0) >= 0:
        print('ESCAPED')
""",
    "trace the first process": CALL
    + "\nif call(101, 16, 1, 0, 0) == 0 or call(101, 0x4206, 1, 0, 0) == 0:\n    print('ESCAPED')",
    "trace a child": CALL
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
        subprocess.run([path, '-c', 'cat ' + W['canary']], stdin=subprocess.DEVNULL, timeout=20)
print(subprocess.run(['sh', '-c', 'umask; su -c "echo ESC""APED" </dev/null'], capture_output=True).stdout.decode())
""",
    "get capabilities back": CALL
    + """
import struct
if call(126, struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[0xffffffff] * 6)) == 0:
    print('ESCAPED')
status = open('/proc/self/status').read()
for line in status.splitlines():
    if line.startswith('Cap') and int(line.split()[1], 16):
        print('ESCAPED', line)
""",
    "undo no_new_privs": CALL + "\nif libc.prctl(38, 0, 0, 0, 0) == 0:\n    print('ESCAPED')",
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
    "use the x32 calls": CALL + "\nif call(0x40000000 | 39) == os.getpid():\n    print('ESCAPED')",
    "type into a terminal": CALL
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
    "io_uring": CALL
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
    "a filter of its own with a listener": CALL
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
