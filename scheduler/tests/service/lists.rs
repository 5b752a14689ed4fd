//! Lists, pages and watches.

use crate::{
    fake::{FREE_MIB, FakeHost, all_tickets, facts, family, grant, hosts, release, still, why},
    server::{SOON, Server},
};
use patina_proto::v1::{
    ListHostsRequest, ListTicketsRequest, TicketState, WatchTicketsRequest, scheduler_client::SchedulerClient,
};
use std::{collections::HashMap, time::Duration};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Code, Response};

#[tokio::test]
async fn pages_have_all_tickets_once_in_the_order_of_granting() {
    let server = Server::start(&[]);
    let _host = FakeHost::start(&server, 1000).await;
    let client = server.client();
    let (one, other) = (family(), family());
    let mut ids = Vec::new();
    for number in 0..25 {
        ids.push(grant(&client, if number % 5 == 0 { &other } else { &one }, 1).await.unwrap().id);
    }
    let mut request = ListTicketsRequest { page_size: 10, ..ListTicketsRequest::default() };
    let mut sizes = Vec::new();
    let mut listed = Vec::new();
    loop {
        let page = client.clone().list_tickets(request.clone()).await.unwrap().into_inner();
        sizes.push(page.tickets.len());
        listed.extend(page.tickets.into_iter().map(|ticket| ticket.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(sizes, [10, 10, 5]);
    ids.sort();
    listed.sort();
    assert_eq!(listed, ids);
    let request = ListTicketsRequest { family: other, ..ListTicketsRequest::default() };
    let page = client.clone().list_tickets(request).await.unwrap().into_inner();
    assert_eq!((page.tickets.len(), page.next_page_token.as_str()), (5, ""));
}

#[tokio::test]
async fn a_host_is_listed_with_what_its_vms_rely_on_and_how_much_memory_is_free() {
    let server = Server::start(&["--lease", "300ms"]);
    let _host = FakeHost::start(&server, 1).await;
    let client = server.client();
    let listed = async {
        loop {
            let host = hosts(&client).await.remove(0);
            if host.free_memory_mib.is_some() {
                return host;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let host = timeout(SOON, listed).await.expect("it beats");
    assert_eq!(host.free_memory_mib, Some(FREE_MIB));
    assert_eq!(host.info.unwrap().facts, Some(facts()));
}

#[tokio::test]
async fn a_host_is_listed_with_its_images_and_with_others_when_it_has_others() {
    let server = Server::start(&["--lease", "300ms"]);
    let host = FakeHost::start(&server, 1).await;
    let client = server.client();
    for images in [vec![vec![1; 32]], vec![vec![1; 32], vec![2; 32]], Vec::new()] {
        *host.images.lock().unwrap() = Some(images.clone());
        let listed = async {
            while hosts(&client).await.remove(0).images.unwrap().digests != images {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, listed).await.expect("it says so when it beats");
    }
}

#[tokio::test]
async fn pages_may_begin_with_the_newest_and_leave_out_what_nobody_asked_for() {
    let server = Server::start(&[]);
    let host = FakeHost::start(&server, 1000).await;
    let client = server.client();
    let family = family();
    let mut asked_for = Vec::new();
    for vmid in 1..=12 {
        if vmid % 3 == 0 {
            assert!(host.admit(&family, vmid).await.unwrap().loose);
        } else {
            asked_for.push(grant(&client, &family, 1).await.unwrap().id);
        }
        // Tickets of the same millisecond are in the order of their numbers.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut request = ListTicketsRequest {
        family,
        page_size: 3,
        asked_for: true,
        newest_first: true,
        ..Default::default()
    };
    let mut listed = Vec::new();
    loop {
        let page = client.clone().list_tickets(request.clone()).await.unwrap().into_inner();
        assert!(page.tickets.len() <= 3);
        listed.extend(page.tickets.into_iter().map(|ticket| ticket.id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    asked_for.reverse();
    assert_eq!(listed, asked_for);
}

#[tokio::test]
async fn hosts_come_in_pages_and_say_what_is_held() {
    let server = Server::start(&["--overcommit-cpu", "1.5"]);
    let mut kept = Vec::new();
    for cpus in [2, 4, 8] {
        kept.push(FakeHost::start(&server, cpus).await);
    }
    let client = server.client();
    grant(&client, &family(), 2).await.unwrap();
    let all = hosts(&client).await;
    assert_eq!(all.iter().map(|host| host.cpus).sum::<u32>(), 21);
    assert_eq!(
        all.iter().map(|host| (host.held_cpus, host.held_vms)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (2, 2)
    );
    let first = ListHostsRequest { page_size: 2, ..ListHostsRequest::default() };
    let first = client.clone().list_hosts(first).await.unwrap().into_inner();
    let rest = ListHostsRequest { page_size: 2, page_token: first.next_page_token };
    let rest = client.clone().list_hosts(rest).await.unwrap().into_inner();
    assert_eq!((first.hosts.len(), rest.hosts.len(), rest.next_page_token.as_str()), (2, 1, ""));
}

#[tokio::test]
async fn a_watcher_sees_what_is_there_and_what_happens() {
    let server = Server::start(&["--remember", "1s"]);
    let _host = FakeHost::start(&server, 8).await;
    let client = server.client();
    let (mine, foreign) = (family(), family());
    let before = grant(&client, &mine, 1).await.unwrap();
    grant(&client, &foreign, 1).await.unwrap();
    let request = WatchTicketsRequest { family: mine.clone() };
    let mut events = client.clone().watch_tickets(request).await.unwrap().into_inner();
    let mut next = async || timeout(SOON, events.message()).await.unwrap().unwrap().unwrap();
    let first = next().await;
    assert_eq!((first.ticket.unwrap().id, first.initial), (before.id.clone(), true));
    grant(&client, &foreign, 1).await.unwrap();
    let after = grant(&client, &mine, 1).await.unwrap();
    let second = next().await;
    let shown = still(Response::new(second.ticket.unwrap()));
    assert_eq!((shown, second.initial), (after.clone(), false));
    release(&client, &after.id).await.unwrap();
    assert_eq!(next().await.ticket.unwrap().state(), TicketState::Released);
    let last = next().await;
    assert_eq!((last.ticket.unwrap().id, last.forgotten), (after.id, true));
    assert_eq!(all_tickets(&client).await.len(), 3);
}

#[tokio::test]
async fn watchers_have_a_limit() {
    let server = Server::start(&[]);
    let client = server.client();
    let mut watchers = Vec::new();
    for _ in 0..256 {
        watchers.push(client.clone().watch_tickets(WatchTicketsRequest::default()).await.unwrap());
    }
    let refused = client.clone().watch_tickets(WatchTicketsRequest::default()).await;
    assert_eq!(why(refused), (Code::ResourceExhausted, "TOO_MANY_WATCHERS".into()));
    watchers.pop();
    let mut again = client.clone().watch_tickets(WatchTicketsRequest::default()).await;
    for _ in 0..SOON.as_millis() / 10 {
        if again.is_ok() {
            break;
        }
        // The server hears of the one that left.
        tokio::time::sleep(Duration::from_millis(10)).await;
        again = client.clone().watch_tickets(WatchTicketsRequest::default()).await;
    }
    again.unwrap();
}

/// It does not read while more happens than is kept for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_lags_behind_gets_everything_again() {
    let server = Server::start(&["--remember", "2s"]);
    let _host = FakeHost::start(&server, 10_000).await;
    let client = server.client();
    // With the least room that there can be on the way.
    let channel = server.channel(|endpoint| endpoint.initial_stream_window_size(65_535)).await;
    let mut watcher = SchedulerClient::new(channel);
    let mut events = watcher.watch_tickets(WatchTicketsRequest::default()).await.unwrap().into_inner();
    let mut callers = JoinSet::new();
    for _ in 0..64 {
        let client = server.client();
        callers.spawn(async move {
            let family = family();
            for _ in 0..50 {
                let ticket = grant(&client, &family, 1).await.unwrap();
                release(&client, &ticket.id).await.unwrap();
            }
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    // What it was told first is forgotten while it does not read.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let kept = grant(&client, &family(), 1).await.unwrap();
    let ledger: HashMap<_, _> = all_tickets(&client).await.into_iter().map(|t| (t.id.clone(), t)).collect();
    let (mut seen, mut changed, mut again) = (HashMap::new(), false, false);
    assert_eq!(ledger.keys().collect::<Vec<_>>(), [&kept.id]);
    while seen != ledger {
        let event = timeout(SOON, events.message()).await.expect("all of it comes").unwrap().unwrap();
        (changed, again) = (changed || !event.initial, again || (changed && event.initial));
        let ticket = still(Response::new(event.ticket.unwrap()));
        if event.forgotten {
            seen.remove(&ticket.id);
        } else {
            seen.insert(ticket.id.clone(), ticket);
        }
    }
    assert!(again, "it was not behind");
}
