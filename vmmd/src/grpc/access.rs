//! Who may make which call.

use patina_daemon::{roles::Callers, tls::Role};

/// By the path of a call: of vmmd's services, and of those of a scheduler that is built in.
#[must_use]
pub fn callers(path: &str) -> Callers {
    match path.strip_prefix("/patina.v1.Vmmd/") {
        Some(method) => Callers::Operators(vmmd(method)),
        None if path.starts_with("/patina.v1.HostPeer/") => Callers::Hosts,
        None => scheduler::grpc::access::callers(path),
    }
}

fn vmmd(method: &str) -> Role {
    match method {
        "GetHost" | "GetVm" | "ListVms" | "WaitVm" | "Logs" | "WatchEvents" | "ListUsage"
        | "ListSnapshots" | "GetSnapshot" | "ListImages" => Role::View,
        "CreateVm" | "CloneVm" | "KillVm" | "RemoveVm" | "Exec" | "Console" | "PublishPorts"
        | "UnpublishPorts" => Role::Use,
        // Snapshots are files of the host: CreateSnapshot, RestoreSnapshot, VerifySnapshot,
        // RemoveSnapshot; PruneImages.
        _ => Role::Admin,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_using_and_operating_are_for_different_roles() {
        let of = |method: &str| callers(&format!("/patina.v1.Vmmd/{method}"));
        assert_eq!(of("ListVms"), Callers::Operators(Role::View));
        for using in ["Exec", "PublishPorts", "UnpublishPorts"] {
            assert_eq!(of(using), Callers::Operators(Role::Use), "{using}");
        }
        for admin in ["PruneImages", "CreateSnapshot", "New", ""] {
            assert_eq!(of(admin), Callers::Operators(Role::Admin), "{admin}");
        }
        assert_eq!(callers("/patina.v1.Scheduler/Join"), Callers::OperatorsAndHosts(Role::Use));
        assert_eq!(callers("/patina.v1.HostPeer/SpawnClones"), Callers::Hosts);
        assert_eq!(callers("/grpc.health.v1.Health/Check"), Callers::All);
    }
}
