use super::*;
use crate::{
    core::{
        record::{HostRecord, Scheduling},
        ticket::{Part, State, Ticket},
        vmids::{Block, VmidRecord},
    },
    store::JoinData,
};
use std::{collections::BTreeMap, fs, process::Command};

fn ticket(vms: u32) -> Ticket {
    Ticket {
        id: Uuid::new_v4(),
        family: Uuid::new_v4(),
        state: State::Granted,
        epoch: 7,
        request_id: Some("r".into()),
        vcpus: 1,
        memory_mib: 256,
        min_cpus_per_vm: 1,
        places: BTreeMap::from([(Uuid::new_v4(), vms)]),
        immediate: false,
        parent_vmid: None,
        parent_host: None,
        parent_ended: false,
        parts: BTreeMap::new(),
        clones: BTreeMap::new(),
        results: BTreeMap::new(),
        kills_requested: BTreeMap::new(),
        met: None,
        granted_unix_ms: 1,
        expires_unix_ms: 2,
        over_unix_ms: None,
    }
}

fn host(scheduling: Scheduling) -> HostRecord {
    let id = Uuid::from_u128(1);
    HostRecord { id, info: None, scheduling, scheduling_unix_ms: 3, lost_unix_ms: None }
}

fn counter(next: u32) -> VmidRecord {
    let host = Uuid::from_u128(1);
    let given = [Block { host, request: "r".into(), first: 3, count: 2 }].into();
    VmidRecord { family: Uuid::from_u128(7), host, next, given }
}

fn open(folder: &Path) -> Result<FileStore, StoreError> {
    FileStore::open(folder, Lasting::Process)
}

fn sorted(mut tickets: Vec<Ticket>) -> Vec<Ticket> {
    tickets.sort_by_key(|ticket| ticket.id);
    tickets
}

#[test]
fn what_was_committed_is_there_when_it_is_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let [kept, changed, gone] = [ticket(1), ticket(2), ticket(3)];
    let left = |of: &Ticket| JoinData { ticket: of.id, vmid: 4, bytes: vec![9; 1 << 20] };
    let mut store = open(folder.path()).unwrap();
    let first = Batch {
        puts: vec![&kept, &changed, &gone],
        data: vec![left(&kept), left(&gone)],
        ..Batch::default()
    };
    store.commit(&first).unwrap();
    let changed = Ticket { state: State::Used, parent_vmid: Some(0), ..changed };
    store
        .commit(&Batch {
            puts: vec![&changed],
            hosts: vec![host(Scheduling::Open), host(Scheduling::Draining)],
            forgets: vec![gone.id],
            epochs: Some(77),
            ..Batch::default()
        })
        .unwrap();
    drop(store);
    let mut store = FileStore::open(folder.path(), Lasting::Host).unwrap();
    let stored = store.load().unwrap();
    assert_eq!(sorted(stored.tickets), sorted(vec![kept.clone(), changed]));
    assert_eq!(stored.epochs, 77);
    assert_eq!(stored.hosts, [host(Scheduling::Draining)]);
    store.commit(&Batch { forget_hosts: vec![Uuid::from_u128(1)], ..Batch::default() }).unwrap();
    assert!(store.load().unwrap().hosts.is_empty());
    assert_eq!(store.join_data(kept.id, 4).unwrap(), Some(vec![9; 1 << 20]));
    assert_eq!(store.join_data(kept.id, 5).unwrap(), None);
    assert_eq!(store.join_data(gone.id, 4).unwrap(), None);
    let nothing = JoinData { bytes: Vec::new(), ..left(&kept) };
    store.commit(&Batch { data: vec![nothing], ..Batch::default() }).unwrap();
    assert_eq!(store.join_data(kept.id, 4).unwrap(), None);
}

#[test]
fn people_can_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    let ticket = ticket(1);
    store.commit(&Batch { puts: vec![&ticket], ..Batch::default() }).unwrap();
    let other = Connection::open(folder.path().join(FILE)).unwrap();
    let text: String = other.query_row("select ticket from tickets", [], |row| row.get(0)).unwrap();
    assert!(text.contains(r#""state":"granted""#), "{text}");
}

/// The lock belongs to a process, so it takes two.
#[test]
fn another_scheduler_is_refused_by_its_pid() {
    if let Some(folder) = std::env::var_os("LEDGER_TO_OPEN") {
        println!("second: {}", open(Path::new(&folder)).unwrap_err());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let second = || {
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "--nocapture", "store::file::tests::another_scheduler_is_refused_by_its_pid"]);
        let output = again.env("LEDGER_TO_OPEN", folder.path()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let refused = second();
    let pid = format!("another scheduler (pid {}) has it; stop that one", std::process::id());
    assert!(refused.contains(&pid), "{refused}");
    drop(store);
    assert!(!second().contains("another scheduler"));
}

#[test]
fn foreign_newer_and_damaged_files_are_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let refused = |text: &str| {
        let before = fs::read(&path).unwrap();
        let error = open(folder.path()).and_then(|mut store| store.load()).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains("scheduler.db"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    };
    fs::write(&path, vec![b'x'; 8192]).unwrap();
    refused("not a ledger of Patina; move it away");
    fs::remove_file(&path).unwrap();
    Connection::open(&path).unwrap().execute_batch("create table t (x)").unwrap();
    refused("not a ledger of Patina");
    fs::remove_file(&path).unwrap();
    drop(open(folder.path()).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", VERSION + 1).unwrap();
    refused("version 5, this scheduler knows 4");
    Connection::open(&path).unwrap().pragma_update(None, "user_version", VERSION).unwrap();
    Connection::open(&path).unwrap().execute("insert into tickets values ('x', '{}')", []).unwrap();
    refused("row x cannot be parsed");
}

#[test]
fn a_page_that_was_written_over_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let mut store = open(folder.path()).unwrap();
    let many: Vec<_> = (0..200).map(ticket).collect();
    store.commit(&Batch { puts: many.iter().collect(), ..Batch::default() }).unwrap();
    drop(store);
    let mut bytes = fs::read(&path).unwrap();
    let half = bytes.len() / 2 / 4096 * 4096;
    bytes[half..half + 4096].fill(0x5a);
    fs::write(&path, bytes).unwrap();
    let error = open(folder.path()).unwrap().load().unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("restore a copy"), "{error}");
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = open(&folder.path().join("file/state")).unwrap_err().to_string();
    assert!(error.contains("file/state") && error.contains("--state-dir"), "{error}");
}

/// As the first release wrote it.
#[test]
fn a_ledger_of_version_1_is_converted_once_with_all_that_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let ticket = Ticket { state: State::Used, parent_vmid: Some(0), ..ticket(1) };
    let old = Connection::open(&path).unwrap();
    old.execute_batch(
        "create table tickets (id text primary key not null, ticket text not null) without rowid;
         create table join_data (ticket text not null, vmid integer not null, data blob not null, primary key (ticket, vmid));",
    )
    .unwrap();
    old.pragma_update(None, "journal_mode", "wal").unwrap();
    old.pragma_update(None, "application_id", APPLICATION).unwrap();
    old.pragma_update(None, "user_version", 1).unwrap();
    let (id, text) = (ticket.id.to_string(), serde_json::to_string(&ticket).unwrap());
    assert!(!text.contains("doomed") && !text.contains("met"), "{text}");
    old.execute("insert into tickets values (?1, ?2)", params![id, text]).unwrap();
    old.execute("insert into join_data values (?1, 1, x'0102')", [id]).unwrap();
    drop(old);
    let mut epochs = Vec::new();
    for _ in 0..2 {
        let mut store = open(folder.path()).unwrap();
        let stored = store.load().unwrap();
        assert_eq!(stored.tickets, std::slice::from_ref(&ticket));
        assert_eq!(store.join_data(ticket.id, 1).unwrap(), Some(vec![1, 2]));
        let vacuum: i64 = store.database.pragma_query_value(None, "auto_vacuum", |row| row.get(0)).unwrap();
        assert_eq!(vacuum, 2, "its room can be given back");
        epochs.push(stored.epochs);
    }
    // Above all that a life could give whose epochs began with its clock.
    let now_ms = u64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap();
    assert!(epochs[0] > (now_ms - 60_000) * 1024 && epochs[0] == epochs[1], "{epochs:?}");
}

#[test]
fn ledgers_of_versions_2_and_3_are_converted_with_what_they_have() {
    for (version, without) in [(2, "drop table hosts; drop table vmids"), (3, "drop table vmids")] {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path()).unwrap();
        let kept = ticket(1);
        store.commit(&Batch { puts: vec![&kept], epochs: Some(9), ..Batch::default() }).unwrap();
        store.database.execute_batch(without).unwrap();
        store.database.pragma_update(None, "user_version", version).unwrap();
        drop(store);
        for _ in 0..2 {
            let mut store = open(folder.path()).unwrap();
            let (hosts, vmids) = (vec![host(Scheduling::Cordoned)], vec![counter(5)]);
            store.commit(&Batch { hosts: hosts.clone(), vmids: vmids.clone(), ..Batch::default() }).unwrap();
            let stored = store.load().unwrap();
            assert_eq!((stored.epochs, stored.hosts, stored.vmids), (9, hosts, vmids));
            assert_eq!(stored.tickets, std::slice::from_ref(&kept));
        }
    }
}

#[test]
fn counters_of_vmids_are_replaced_and_forgotten() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    for next in [5, 6] {
        store.commit(&Batch { vmids: vec![counter(next)], ..Batch::default() }).unwrap();
        assert_eq!(store.load().unwrap().vmids, [counter(next)]);
    }
    store.commit(&Batch { forget_vmids: vec![counter(6).family], ..Batch::default() }).unwrap();
    assert!(store.load().unwrap().vmids.is_empty());
}

#[test]
fn the_room_of_what_is_deleted_is_given_back_in_small_steps() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = open(folder.path()).unwrap();
    let ticket = ticket(1);
    let left = |vmid, bytes| JoinData { ticket: ticket.id, vmid, bytes };
    store.commit(&Batch { puts: vec![&ticket], ..Batch::default() }).unwrap();
    let size = |store: &FileStore| -> u64 {
        let checkpoint = "wal_checkpoint";
        store.database.pragma_query_value(None, checkpoint, |row| row.get::<_, i64>(0)).unwrap();
        fs::metadata(folder.path().join(FILE)).unwrap().len()
    };
    for vmid in 0..16 {
        store.commit(&Batch { data: vec![left(vmid, vec![7; 1 << 20])], ..Batch::default() }).unwrap();
    }
    assert!(size(&store) > 16 << 20);
    assert!(store.tidy().unwrap(), "nothing was deleted");
    let nothing = (1..16).map(|vmid| left(vmid, Vec::new())).collect();
    store.commit(&Batch { data: nothing, ..Batch::default() }).unwrap();
    let mut steps = 1;
    while !store.tidy().unwrap() {
        steps += 1;
    }
    assert!(steps >= 7, "{steps} steps for 15 MiB");
    assert!(size(&store) < 3 << 20, "{}", size(&store));
    assert_eq!(store.join_data(ticket.id, 0).unwrap(), Some(vec![7; 1 << 20]));
}

#[test]
fn the_fields_of_a_stored_ticket_keep_their_names() {
    let kills_requested = BTreeMap::from([(3, "why".to_owned())]);
    let host = Uuid::from_u128(1);
    let parts = BTreeMap::from([(host, Part { used: false, epoch: 7 })]);
    let parent_host = Some(host);
    let ticket = Ticket { immediate: true, kills_requested, parts, parent_host, ..ticket(1) };
    let text = serde_json::to_string(&ticket).unwrap();
    let part = format!("\"parts\":{{\"{host}\":{{\"used\":false,\"epoch\":7}}}}");
    let parent = format!("\"parent_host\":\"{host}\"");
    for stored in ["\"loose\":true", "\"doomed\":{\"3\":\"why\"}", &part, &parent] {
        assert!(text.contains(stored), "{text}");
    }
    assert_eq!(serde_json::from_str::<Ticket>(&text).unwrap(), ticket);
    // As an earlier release stored it.
    let earlier = text.replace(&format!(",{part}"), "").replace(&format!("{parent},"), "");
    let ticket = Ticket { parts: BTreeMap::new(), parent_host: None, ..ticket };
    assert_eq!(serde_json::from_str::<Ticket>(&earlier).unwrap(), ticket);
}
