//! Families as trees: each VM below its parent.

use patina_proto::v1::Vm;
use std::collections::BTreeMap;

/// Orders VMs family by family, each family by its first VM's name, clones after their parent by
/// vmid; with each its depth, 0 for a master and for a clone whose parent was removed.
pub fn order(vms: Vec<Vm>) -> Vec<(usize, Vm)> {
    let mut families: BTreeMap<String, BTreeMap<u32, Vm>> = BTreeMap::new();
    for vm in vms {
        families.entry(vm.family.clone()).or_default().insert(vm.vmid, vm);
    }
    let mut families: Vec<_> = families.into_values().collect();
    families.sort_by_cached_key(|family| family.values().next().map(|vm| vm.name.clone()));
    families.into_iter().flat_map(family).collect()
}

fn family(members: BTreeMap<u32, Vm>) -> Vec<(usize, Vm)> {
    // A clone's vmid is greater than its parent's, so that every parent is placed before its
    // clones.
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    let mut waiting: Vec<(usize, u32)> = Vec::new();
    for vm in members.values().rev() {
        match vm.parent_vmid.filter(|parent| *parent < vm.vmid && members.contains_key(parent)) {
            Some(parent) => children.entry(parent).or_default().push(vm.vmid),
            None => waiting.push((0, vm.vmid)),
        }
    }
    let mut members = members;
    let mut ordered = Vec::with_capacity(members.len());
    // What waits is in falling order: the least vmid is taken next.
    while let Some((depth, vmid)) = waiting.pop() {
        waiting.extend(children.remove(&vmid).into_iter().flatten().map(|child| (depth + 1, child)));
        ordered.extend(members.remove(&vmid).map(|vm| (depth, vm)));
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
    }
}
