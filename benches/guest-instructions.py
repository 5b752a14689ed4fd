#!/usr/bin/env python3
"""Which instructions does the guest's kernel execute for a clone?

Where KVM has no hardware virtualization it emulates the guest's kernel, and the host's tracepoint kvm:kvm_emulate_insn
fires for each instruction; the kernel's System.map names them. So this counts what a clone costs on such a host, exactly,
however busy the machine is. Two things do depend on that: the timer's ticks, which are counted apart, and, through them,
what is due at a tick. Recording makes a guest about half as fast, so it has twice the ticks that it has otherwise. The
iterations of one string instruction count as one where KVM takes several at a time.

Needs root, Debian's linux-perf, release binaries (cargo build --release -p vmm -p vmmd -p vmctl) and the images
(cargo xtask image). Prints a table for each vCPU that ran, the busiest first: a clone, then the parent; with --clones
above 1 the clones first. The exit code is 0, or 1 with a reason.

    benches/guest-instructions.py --bin target/release --kernel PATH/vmlinux --rootfs PATH/rootfs.erofs [--clones 3]
    benches/guest-instructions.py ... --boot 4096        # a boot with so many MiB instead, as one number
"""

import argparse
import bisect
import collections
import os
import re
import subprocess
import sys
import tempfile
import time

EVENT = "kvm:kvm_emulate_insn"
TICK = "asm_sysvec_apic_timer_interrupt"
# Where the interrupt's own part is over: what was put off until then (soft interrupts) is not the
# tick's.
TICK_ENDS = ("irq_exit_rcu", "__irq_exit_rcu")
COUNTED = {
    "system calls": "do_syscall_64", "context switches": "__switch_to", "wake-ups": "try_to_wake_up",
    "page faults": "asm_exc_page_fault", "interrupts of devices": "asm_common_interrupt", "work items": "process_one_work",
    "hashes (BLAKE2s)": "blake2s_compress_generic",
}


def fail(text):
    sys.exit(f"guest-instructions: {text}")


class Symbols:
    """The kernel's functions by address."""

    def __init__(self, path):
        lines = (line.split()[:3] for line in open(path, encoding="ascii"))
        found = sorted((int(address, 16), name) for address, kind, name in lines if kind in "tTwW")
        self.addresses = [address for address, _ in found]
        self.names = [name for _, name in found]
        self.cache = {}

    def look_up(self, address):
        """The function at an address, and whether that is its first instruction."""
        if address not in self.cache:
            at = bisect.bisect(self.addresses, address) - 1
            self.cache[address] = (self.names[at], self.addresses[at] == address) if at >= 0 else ("?", False)
        return self.cache[address]


class Vcpu:
    """What one vCPU executed."""

    def __init__(self):
        self.functions = collections.Counter()
        self.entries = collections.Counter()
        self.ticks = self.in_ticks = 0
        self.is_in_tick = False

    def execute(self, name, is_first):
        if is_first and name == TICK:
            self.is_in_tick, self.ticks = True, self.ticks + 1
        elif self.is_in_tick and name in TICK_ENDS:
            self.is_in_tick = False
        if self.is_in_tick:
            self.in_ticks += 1
            return
        self.functions[name] += 1
        self.entries[name] += is_first

    def tell(self, title, top):
        total = sum(self.functions.values())
        each = self.in_ticks // max(self.ticks, 1)
        print(f"\n{title}: {total} instructions, and {self.in_ticks} in {self.ticks} ticks of {each}")
        print("  " + ", ".join(f"{self.entries[name]} {what}" for what, name in COUNTED.items()))
        for name, count in self.functions.most_common(top):
            print(f"  {100 * count / total:5.1f} %{count:8d}  {self.entries[name]:5d} x {name}")


class Daemon:
    """A vmmd of one's own."""

    def __init__(self, options):
        self.directory = tempfile.TemporaryDirectory(prefix="guest-instructions-")
        self.binaries = os.path.abspath(options.bin)
        self.address = f"unix:{self.directory.name}/socket"
        self.environment = dict(os.environ, PATINA_HOST=self.address, PATINA_KERNEL=os.path.abspath(options.kernel),
                                PATINA_ROOTFS=os.path.abspath(options.rootfs))
        log = open(f"{self.directory.name}/log", "wb")
        words = [f"{self.binaries}/vmmd", "--standalone", "--listen", self.address, "--state-dir", f"{self.directory.name}/state"]
        self.process = subprocess.Popen(words, env=self.environment, stderr=log)
        deadline = time.monotonic() + 30
        while self.vmctl("ls", check=False).returncode:
            if time.monotonic() > deadline or self.process.poll() is not None:
                fail(f"vmmd does not answer: {open(log.name, encoding='utf-8').read()[-2000:]}")
            time.sleep(0.1)

    def vmctl(self, *words, check=True):
        result = subprocess.run([f"{self.binaries}/vmctl", *words], env=self.environment, capture_output=True, text=True)
        if check and result.returncode:
            fail(f"vmctl {' '.join(words)}: {result.stderr.strip()}")
        return result

    def stop(self):
        self.vmctl("rm", "--force", "--family", "t", check=False)
        self.process.terminate()
        self.process.wait()
        self.directory.cleanup()


def boot(daemon, mebibytes):
    """Prints the instructions of a boot."""
    counts = f"{daemon.directory.name}/counts"
    words = ["perf", "stat", "-a", "-x,", "-e", EVENT, "-o", counts, f"{daemon.binaries}/vmctl", "run", "--cold", "--name", "t",
             "--memory", str(mebibytes), "--timeout", "600"]
    if subprocess.run(words, env=daemon.environment, stdout=subprocess.DEVNULL).returncode:
        fail("the guest did not boot")
    found = re.search(r"^(\d+),", open(counts, encoding="ascii").read(), re.M)
    if not found:
        fail(f"perf counts no {EVENT}: it needs root and a host whose KVM emulates guests' kernels")
    print(f"boot with {mebibytes} MiB: {found[1]} instructions")


def record(daemon, options):
    """Makes clones and returns what each vCPU executed meanwhile, by thread."""
    daemon.vmctl("run", "--cold", "--name", "t")
    # The first clones of an image are slower: their pages are not prefaulted, and the parent is
    # frozen for the first time.
    daemon.vmctl("clone", "t", "-n", "3")
    time.sleep(options.settle)
    data = f"{daemon.directory.name}/data"
    clone = f"{daemon.binaries}/vmctl clone t -n {options.clones} >&2 && sleep {options.after}"
    words = ["perf", "record", "-q", "-m", "16M", "-e", EVENT, "-c", "1", "-a", "-o", data, "--", "sh", "-c", clone]
    if subprocess.run(words, env=daemon.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        fail(f"perf cannot record {EVENT}: it needs root and a host whose KVM emulates guests' kernels")
    script = subprocess.Popen(["perf", "script", "-i", data, "-F", "tid,trace"], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True)
    symbols = Symbols(os.path.join(os.path.dirname(os.path.realpath(options.kernel)), "System.map"))
    vcpus = collections.defaultdict(Vcpu)
    event = re.compile(r"^\s*(\d+)\s+[0-9a-f]+:([0-9a-f]+):")
    for line in script.stdout:
        found = event.match(line)
        if found:
            vcpus[int(found[1])].execute(*symbols.look_up(int(found[2], 16)))
    return vcpus


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release", help="where vmmd, vmm and vmctl are")
    parser.add_argument("--kernel", required=True, help="the guest's vmlinux, with System.map beside it")
    parser.add_argument("--rootfs", required=True, help="the guest's root file system")
    parser.add_argument("--clones", type=int, default=1, help="how many clones one call makes")
    parser.add_argument("--after", type=float, default=1.5, help="seconds that are recorded after the call")
    parser.add_argument("--settle", type=float, default=5, help="seconds between the first clones and the recorded ones")
    parser.add_argument("--top", type=int, default=25, help="how many functions are named")
    parser.add_argument("--boot", type=int, metavar="MIB", help="count a boot instead")
    options = parser.parse_args()
    daemon = Daemon(options)
    try:
        if options.boot:
            boot(daemon, options.boot)
            return
        vcpus = sorted(record(daemon, options).values(), key=lambda vcpu: -sum(vcpu.functions.values()))
        if not vcpus:
            fail("nothing was recorded: does KVM emulate guests' kernels here?")
        for number, vcpu in enumerate(vcpus[: options.clones + 1]):
            vcpu.tell(f"vCPU {number + 1} of {len(vcpus)} that ran", options.top)
        whole = sum(sum(vcpu.functions.values()) for vcpu in vcpus)
        ticks = sum(vcpu.in_ticks for vcpu in vcpus)
        print(f"\nall vCPUs: {whole} instructions and {ticks} in ticks; for each clone {whole // options.clones}")
    finally:
        daemon.stop()


main()
