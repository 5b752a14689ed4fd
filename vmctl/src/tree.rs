//! Families as trees: each VM below its parent.

use patina_proto::v1::Vm;
use std::collections::{BTreeMap, BTreeSet};

/// Orders VMs family by family, each family by its first VM's name, clones after their parent by
/// vmid; with each its depth, 0 for a master and for a clone whose parent was removed.
pub fn order(vms: Vec<Vm>) -> Vec<(usize, Vm)> {
    let mut families: BTreeMap<String, Vec<Vm>> = BTreeMap::new();
    for vm in vms {
        families.entry(vm.family.clone()).or_default().push(vm);
    }
    let mut families: Vec<Vec<Vm>> = families.into_values().collect();
    for family in &mut families {
        // Of what vmmd has not taken over only the name is known, and the rest is the same for all.
        family.sort_by(|a, b| (a.vmid, &a.name, &a.host).cmp(&(b.vmid, &b.name, &b.host)));
    }
    families.sort_by_cached_key(|family| family.first().map(|vm| (vm.name.clone(), vm.host.clone())));
    families.into_iter().flat_map(family).collect()
}

/// `members` are in the order of their vmids.
fn family(members: Vec<Vm>) -> Vec<(usize, Vm)> {
    let vmids: BTreeSet<u32> = members.iter().map(|vm| vm.vmid).collect();
    // A clone's vmid is greater than its parent's, so that every parent is placed before its
    // clones.
    let mut children: BTreeMap<u32, Vec<Vm>> = BTreeMap::new();
    let mut waiting: Vec<(usize, Vm)> = Vec::new();
    let count = members.len();
    for vm in members.into_iter().rev() {
        match vm.parent_vmid.filter(|parent| *parent < vm.vmid && vmids.contains(parent)) {
            Some(parent) => children.entry(parent).or_default().push(vm),
            None => waiting.push((0, vm)),
        }
    }
    let mut ordered = Vec::with_capacity(count);
    // What waits is in falling order: the least vmid is taken next.
    while let Some((depth, vm)) = waiting.pop() {
        waiting.extend(children.remove(&vm.vmid).into_iter().flatten().map(|child| (depth + 1, child)));
        ordered.push((depth, vm));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(family: &str, vmid: u32, parent_vmid: Option<u32>) -> Vm {
        let master = if family == "2" { "able" } else { "web" };
        let name = if vmid == 0 { master.to_owned() } else { format!("{master}.{vmid}") };
        Vm { name, family: family.into(), vmid, parent_vmid, ..Vm::default() }
    }

    fn drawn(vms: Vec<Vm>) -> Vec<String> {
        order(vms).into_iter().map(|(depth, vm)| format!("{}{}", "-".repeat(depth), vm.name)).collect()
    }

    #[test]
    fn clones_stand_under_their_parents_in_the_order_of_vmids() {
        let vms = vec![
            vm("1", 10, Some(0)),
            vm("1", 0, None),
            vm("2", 0, None),
            vm("1", 3, Some(1)),
            vm("1", 2, Some(0)),
            vm("1", 1, Some(0)),
            vm("1", 4, Some(3)),
        ];
        assert_eq!(drawn(vms), ["able", "web", "-web.1", "--web.3", "---web.4", "-web.2", "-web.10"]);
    }

    #[test]
    fn no_vm_is_lost_whatever_its_parent_is() {
        let vms = vec![vm("1", 1, Some(0)), vm("1", 2, Some(1)), vm("1", 3, Some(3)), vm("1", 4, Some(9))];
        assert_eq!(drawn(vms), ["web.1", "-web.2", "web.3", "web.4"]);
        // Broken VMs have no family and no number of their own.
        let broken = |name: &str| Vm { name: name.into(), ..Vm::default() };
        assert_eq!(drawn(vec![broken("torn"), broken("bent")]), ["bent", "torn"]);
        let on = |host: &str| Vm { host: host.into(), ..vm("1", 1, Some(0)) };
        let both = drawn(vec![on("b"), vm("1", 2, Some(1)), vm("1", 0, None), on("a")]);
        assert_eq!(both, ["web", "-web.1", "--web.2", "-web.1"]);
    }
}
