//! A ledger without room.

use crate::{
    fake::{FakeHost, all_tickets, family, get, grant, hosts, why},
    server::{SOON, Server},
};
use std::{fs, io::Write as _, time::Duration};
use tonic::Code;
use tonic_types::StatusExt as _;

/// Fills the scheduler's disk to the last byte.
fn fill(server: &Server) {
    let mut file = fs::File::create(server.state_within().join("ballast")).unwrap();
    for size in [4096, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_room_again_works() {
    let server = Server::on_small_disk(1024);
    let host = FakeHost::start(&server, 1000).await;
    let client = server.client();
    let family = family();
    let kept = grant(&client, &family, 1).await.unwrap();
    fill(&server);
    let mut granted = vec![kept.id.clone()];
    let refused = loop {
        // The log has some room of its own left.
        match grant(&client, &family, 1).await {
            Ok(ticket) => granted.push(ticket.id),
            Err(status) => break status,
        }
    };
    let message = refused.message();
    assert!(message.contains("the disk is full: ") && message.contains("; free some space"), "{refused:?}");
    assert!(refused.get_details_retry_info().is_some());
    assert_eq!(why::<()>(Err(refused)), (Code::Unavailable, "STORE".into()));
    // Still readable, and nothing that was refused is in it.
    assert_eq!(get(&client, &kept.id).await.unwrap(), kept);
    let mut ledger: Vec<_> = all_tickets(&client).await.into_iter().map(|ticket| ticket.id).collect();
    ledger.sort();
    granted.sort();
    assert_eq!(ledger, granted);
    fs::remove_file(server.state_within().join("ballast")).unwrap();
    host.registered().await;
    let mut again = grant(&client, &family, 1).await;
    for _ in 0..SOON.as_millis() / 100 {
        if again.is_ok() {
            break;
        }
        // The scheduler tries again after a second, and hosts register anew.
        tokio::time::sleep(Duration::from_millis(100)).await;
        again = grant(&client, &family, 1).await;
    }
    again.unwrap();
    let granted = u32::try_from(granted.len()).unwrap();
    assert_eq!(hosts(&client).await[0].held_cpus, granted + 1);
}
