//! `vmctl rm`: removes ended VMs.

use super::{
    Context, Several,
    cluster::{Care, Place, Where},
};
use crate::{client::Client, error::CtlError, view::has_ended};
use patina_proto::v1::{RemoveVmRequest, Vm, VmState};
use std::collections::BTreeMap;
use tonic::Code;

/// Arguments of `vmctl rm`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Kill a VM that still runs.
    #[arg(short, long, conflicts_with = "ended")]
    force: bool,
    /// Look for the VMs, or for those that are chosen, on all hosts of the scheduler.
    #[arg(long)]
    all_hosts: bool,
    /// The VMs.
    #[arg(required_unless_present_any = ["ended", "family", "broken"], conflicts_with_all = ["ended", "family"])]
    names: Vec<String>,
    /// Instead: all VMs that have ended.
    #[arg(long)]
    ended: bool,
    /// Instead: all VMs of a family on this host, named by any of them or by its UUID; with --ended
    /// those that have ended; with --all-hosts those on all hosts.
    #[arg(long, value_name = "NAME|UUID")]
    family: Option<String>,
    /// Those that vmmd cannot take over, which `vmctl ls` shows as broken: all of them, or the
    /// named ones. Their folders go, and whatever process is in them is killed.
    #[arg(long, conflicts_with_all = ["force", "ended", "family"])]
    broken: bool,
}

/// Removes each VM, prints the names of those that are gone.
pub async fn run(context: &Context, arguments: Arguments) -> Result<(), CtlError> {
    let Arguments { force, all_hosts, names, ended, family, broken } = arguments;
    let place = context.place(Where { all_hosts }).await?;
    let mut several = Several::of("VMs", context.format);
    let request = move |name: String| RemoveVmRequest { name, force, broken };
    if !names.is_empty() {
        let remove = |name: String| {
            let place = place.clone();
            async move {
                let mut client = place.client(&name, Care::Change).await?;
                Ok(client.remove_vm(request(name)).await.map(drop)?)
            }
        };
        several.each(names, remove).await?;
        return several.finish();
    }
    let family = match (&family, &place) {
        (None, _) => None,
        (Some(named), Place::One(_)) => Some(context.family(named).await?),
        (Some(named), Place::All(cluster)) => Some(cluster.family(named, Care::Change).await?),
    };
    let chosen = |vms| chosen(vms, broken, ended, family.as_deref());
    // VMs of different families may have one name, each on a host of its own.
    let mut places: BTreeMap<String, Vec<Client>> = BTreeMap::new();
    let complete = match &place {
        Place::One(client) => {
            let names = chosen(context.vms().await?).into_iter();
            places.extend(names.map(|name| (name, vec![client.clone()])));
            Ok(())
        }
        Place::All(cluster) => {
            let asked = cluster.vms().await;
            for (member, vms) in &asked.answers {
                for name in chosen(vms.clone()) {
                    places.entry(name).or_default().push(member.client.clone());
                }
            }
            cluster.complete(&asked)
        }
    };
    let remove = |name: String| {
        let clients = places.get(&name).cloned().unwrap_or_default();
        async move {
            for mut client in clients {
                match client.remove_vm(request(name.clone())).await {
                    // vmmd, or somebody else, was faster.
                    Err(status) if status.code() == Code::NotFound => {}
                    removed => drop(removed?),
                }
            }
            Ok(())
        }
    };
    several.each(places.keys().cloned().collect(), remove).await?;
    several.finish()?;
    complete
}

fn chosen(vms: Vec<Vm>, broken: bool, ended: bool, family: Option<&str>) -> Vec<String> {
    let is_meant = |vm: &Vm| {
        broken == (vm.state() == VmState::Broken)
            && (!ended || has_ended(vm))
            && family.is_none_or(|family| vm.family == family)
    };
    vms.into_iter().filter(is_meant).map(|vm| vm.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[test]
    fn what_has_ended_is_chosen_of_all_or_of_a_family() {
        let vm = |name: &str, family: &str, state: VmState| Vm {
            name: name.into(),
            family: family.into(),
            state: state.into(),
            ..Vm::default()
        };
        let vms = || {
            vec![
                vm("a", "1", VmState::Ready),
                vm("a.1", "1", VmState::Ended),
                vm("b", "2", VmState::Ended),
                vm("b.1", "2", VmState::Booting),
                vm("c", "", VmState::Broken),
            ]
        };
        assert_eq!(chosen(vms(), false, true, None), ["a.1", "b"]);
        assert_eq!(chosen(vms(), false, true, Some("1")), ["a.1"]);
        assert_eq!(chosen(vms(), false, false, Some("2")), ["b", "b.1"]);
        assert_eq!(chosen(vms(), true, false, None), ["c"]);
    }

    #[test]
    fn either_names_or_a_choice() {
        let is_taken = |words: &str| {
            let line = format!("vmctl rm {words}");
            crate::cli::Arguments::try_parse_from(line.split_whitespace()).is_ok()
        };
        let right = [
            "a b",
            "-f a",
            "--ended",
            "--ended --family a",
            "--family a -f",
            "--broken",
            "--broken a b",
            "--all-hosts --family a",
            "--all-hosts --ended",
        ];
        assert!(right.into_iter().all(is_taken));
        assert!(
            !["", "-f", "a --ended", "a --family b", "--ended -f", "--broken -f a", "--broken --ended"]
                .into_iter()
                .any(is_taken)
        );
    }
}
