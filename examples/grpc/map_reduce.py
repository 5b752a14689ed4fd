#!/usr/bin/env python3
"""Map and reduce over clones of a running VM, driven from outside with nothing but gRPC.

A ticket reserves the workers, one call clones them, all meet at the ticket's barrier, each works on its part in its own
machine and leaves the result, and the results are gathered when all have ended.

    ./map_reduce.py NAME --workers 3

NAME is a VM that is ready (`vmctl run --name NAME`). README.md says what it needs.
"""

import argparse
import concurrent.futures
import os
import pathlib
import sys

import grpc

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "proto"))
try:
    # Compiles the interfaces here and now.
    scheduler, scheduler_calls = grpc.protos_and_services("patina/v1/scheduler.proto")
    vmmd, vmmd_calls = grpc.protos_and_services("patina/v1/vmmd.proto")
except NotImplementedError:
    # There is no grpcio-tools: protoc has done it beforehand, see README.md.
    from patina.v1 import scheduler_pb2 as scheduler, scheduler_pb2_grpc as scheduler_calls
    from patina.v1 import vmmd_pb2 as vmmd, vmmd_pb2_grpc as vmmd_calls

# What a worker does in its clone: meets the others, sums its share of the numbers below a million,
# leaves the sum and ends.
WORK = """
gc sync || exit 1
python3 -c 'print(sum(range({part}, 1000000, {parts})))' | gc join --data -
"""


def connect(address):
    """A channel to unix:PATH, tcp:ADDRESS:PORT or https://ADDRESS:PORT. PATINA_TLS_DIR names the certificates for TCP."""
    folder = os.environ.get("PATINA_TLS_DIR")
    is_local = address.startswith("unix:")
    for prefix in ("tcp:", "http://", "https://"):
        address = address.removeprefix(prefix)
    if folder and not is_local:
        authority, certificate, key = (open(f"{folder}/{name}.pem", "rb").read() for name in ("ca", "cert", "key"))
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority, key, certificate))
    # A unix socket's path is no authority for HTTP/2.
    return grpc.insecure_channel(address, options=[("grpc.default_authority", "localhost")])


class Family:
    """A running VM, the vmmd of its host and the scheduler of that."""

    def __init__(self, address, name):
        channel = connect(address)
        self.vmmd = vmmd_calls.VmmdStub(channel)
        self.host = self.vmmd.GetHost(vmmd.GetHostRequest())
        elsewhere = self.host.scheduler
        self.scheduler = scheduler_calls.SchedulerStub(connect(elsewhere) if elsewhere else channel)
        self.vm = self.vmmd.GetVm(vmmd.GetVmRequest(name=name))

    def reserve(self, workers):
        """A ticket for so many clones, each as large as the VM, on its host: clones start there. Waits a minute for room."""
        return self.scheduler.RequestTicket(
            scheduler.RequestTicketRequest(
                family=self.vm.family,
                max_cpus=workers * self.vm.vcpus,
                min_vms=workers,
                min_cpus_per_vm=1,
                vcpus=self.vm.vcpus,
                memory_mib=self.vm.memory_mib,
                timeout_ms=60_000,
                host_ids=[self.host.id],
            )
        )

    def clone(self, ticket):
        """All clones of the ticket. One that fails does not fail the others: its outcome is an error."""
        made = self.vmmd.CloneVm(vmmd.CloneVmRequest(name=self.vm.name, ticket=ticket.id))
        print(f"paused for {made.pause_us / 1000:.1f} ms")
        for clone in made.clones:
            if clone.error:
                raise SystemExit(f"clone {clone.vmid}: {clone.error}")
        return [clone.vm for clone in made.clones]

    def run(self, vm, script):
        """Runs a shell script in a clone: its exit code; none when the clone has ended meanwhile, as it should."""
        until = vmmd.WaitVmRequest.UNTIL_READY
        self.vmmd.WaitVm(vmmd.WaitVmRequest(name=vm.name, until=until, timeout_ms=120_000))
        start = vmmd.ExecStart(name=vm.name, argv=["sh", "-c", script])
        says = [vmmd.ExecRequest(start=start), vmmd.ExecRequest(stdin_end=vmmd.StdinEnd())]
        try:
            for message in self.vmmd.Exec(iter(says)):
                sys.stderr.buffer.write(message.stdout or message.stderr)
                if message.HasField("exit"):
                    return message.exit.code
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION):
                raise
        return None

    def meet(self, ticket):
        """Stands for the VM at the barrier where its clones wait."""
        met = self.scheduler.Sync(
            scheduler.SyncRequest(ticket=ticket.id, family=self.vm.family, vmid=self.vm.vmid, timeout_ms=120_000)
        )
        print(f"{met.arrived} VMs met")

    def gather(self, ticket):
        """What each clone left, by vmid, when all have ended."""
        wait = scheduler.JoinWait(vmid=self.vm.vmid, timeout_ms=120_000)
        ended = self.scheduler.Join(scheduler.JoinRequest(ticket=ticket.id, family=self.vm.family, wait=wait))
        results = {}
        for result in ended.results:
            end = scheduler.VmEnd.Name(result.end).removeprefix("VM_END_").lower()
            print(f"clone {result.vmid} {end}, status {result.status}, {result.data_bytes} bytes")
            asked = scheduler.GetJoinDataRequest(ticket=ticket.id, family=self.vm.family, vmid=result.vmid)
            results[result.vmid] = self.scheduler.GetJoinData(asked).data if result.data_bytes else b""
        return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the VM")
    parser.add_argument("--host", default="unix:/run/patina/vmmd.sock", help="where vmmd listens")
    parser.add_argument("--workers", type=int, default=3)
    arguments = parser.parse_args()
    try:
        family = Family(arguments.host, arguments.name)
        ticket = family.reserve(arguments.workers)
        print(f"ticket {ticket.id}")
        try:
            total = work(family, ticket)
        finally:
            # Whatever happened: what still runs is ended, and with its last clone the ticket is
            # given back.
            family.scheduler.Kill(scheduler.KillRequest(ticket=ticket.id, family=family.vm.family, reason="the job is over"))
            family.scheduler.ReleaseTicket(scheduler.ReleaseTicketRequest(id=ticket.id, family=family.vm.family))
    except grpc.RpcError as error:
        raise SystemExit(f"{error.code().name}: {error.details()}") from error
    print(f"total {total}")
    return 0 if total == sum(range(1_000_000)) else 1


def work(family, ticket):
    clones = family.clone(ticket)
    with concurrent.futures.ThreadPoolExecutor(len(clones)) as pool:
        running = [
            pool.submit(family.run, clone, WORK.format(part=part, parts=len(clones)))
            for part, clone in enumerate(clones)
        ]
        family.meet(ticket)
        results = family.gather(ticket)
        for each in running:
            each.result()
    return sum(int(data) for data in results.values())


if __name__ == "__main__":
    sys.exit(main())
