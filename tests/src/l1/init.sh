#!/bin/busybox sh
# The first process of an emulated host: runs the suites of tests, and says what came of them on the
# second serial port. The first one has the kernel's log.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec < /dev/null > /dev/ttyS1 2>&1
# No line of the kernel's log may be missing among many: a process that was killed by its filter is
# told there.
echo 0 > /proc/sys/kernel/printk_ratelimit
echo "root:x:0:0::/:/bin/sh" > /etc/passwd
ip link set lo up

result=ok
for module in /modules/*.ko; do
	insmod "$module" || result="failed: insmod $module"
done
[ -c /dev/kvm ] || result="failed: the kernel offers no /dev/kvm"
echo "$(uname -r), $(nproc) CPUs"
while read -r suite; do
	echo "SUITE $suite"
	"/suites/$suite"
	code=$?
	echo "END $suite $code"
	[ $code = 0 ] || result="failed: $suite"
done < /suites/order
echo "RESULT $result"
sync
# Closing the port waits until all of it has been sent.
exec > /dev/null 2>&1
poweroff -f
