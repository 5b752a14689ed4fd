//! All hosts of the scheduler: they are asked at the same time, and searched for a VM.

mod silent;

use super::{Context, all_vms, hosts};
use crate::{
    client::{self, Client},
    error::{CtlError, FindError},
};
use patina_daemon::tls::Security;
use patina_proto::v1::{GetHostRequest, GetVmRequest, Vm};
use silent::Silent;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::{sync::Semaphore, task::JoinSet, time::timeout};
use tonic::Code;
use uuid::Uuid;

/// How many hosts are asked at once.
const AT_ONCE: usize = 32;
/// How long a host may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many hosts a message names.
const NAMED_MAX: usize = 16;

/// What a command that names a VM does, if some hosts do not answer and may have a VM of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// It only looks: it goes on with the VM that was found.
    Look,
    /// It changes the VM: it must not be the wrong one.
    Change,
}

/// Where a command looks for the VM that it names.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Where {
    /// Look for the VM on all hosts of the scheduler.
    #[arg(long)]
    pub all_hosts: bool,
}

/// A host, as the scheduler lists it.
#[derive(Debug, Clone)]
struct Listed {
    /// Its name; its UUID if others have the name too.
    label: String,
    id: String,
    address: String,
    is_lost: bool,
}

/// A host that answers.
#[derive(Debug)]
pub struct Member {
    /// Its name; its UUID if others have the name too.
    pub label: String,
    /// Where its vmmd listens.
    address: String,
    is_lost: bool,
    /// The connection to its vmmd.
    pub client: Client,
}

/// What the hosts that answered said, in their order, and those that did not answer.
#[derive(Debug)]
pub struct Answers<'a, T> {
    pub answers: Vec<(&'a Member, T)>,
    silent: Vec<Silent>,
}

impl<T> Answers<'_, T> {
    /// Says on standard error which hosts did not answer, and why.
    fn report(&self) {
        self.silent.iter().for_each(Silent::report);
    }
}

/// All hosts of the scheduler.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Member>,
    silent: Vec<Silent>,
}

impl Cluster {
    /// Asks the scheduler for its hosts, and connects to all of them. Which do not answer is said
    /// on standard error.
    ///
    /// # Errors
    /// The scheduler does not answer.
    pub async fn reach(context: &Context) -> Result<Self, CtlError> {
        let mut listed = list(hosts::all(context).await?);
        // A host that is asked by its address on the command line, perhaps on its Unix socket, is
        // asked there, whatever address it has told. With --scheduler there need not be one.
        let own = timeout(PATIENCE, context.own_host()).await;
        let own = own.ok().and_then(Result::ok).flatten();
        if let Some(own) = &own
            && context.scheduler.is_none()
            && listed.iter().all(|host| host.id != own.id)
        {
            let (label, id, address) = (own.hostname.clone(), own.id.clone(), context.host.clone());
            listed.push(Listed { label, id, address, is_lost: false });
        }
        let security = context.security()?;
        let mut connections = Vec::with_capacity(listed.len());
        for host in &mut listed {
            let known = own.as_ref().is_some_and(|own| own.id == host.id);
            let known = if known { Some(context.client().await?) } else { None };
            if known.is_some() {
                host.address.clone_from(&context.host);
            }
            connections.push(connect(host.clone(), known, security.clone()));
        }
        let (mut members, mut silent) = (Vec::new(), Vec::new());
        for (host, client) in listed.into_iter().zip(each(connections).await) {
            let Listed { label, address, is_lost, .. } = host;
            match client {
                Ok(client) => members.push(Member { label, address, is_lost, client }),
                Err(reason) => silent.push(Silent { label, address, is_lost, reason }),
            }
        }
        silent.iter().for_each(Silent::report);
        Ok(Self { members, silent })
    }

    /// Asks all hosts that can be reached.
    async fn ask<T, F>(&self, call: impl Fn(Client) -> F) -> Answers<'_, T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CtlError>> + Send + 'static,
    {
        let calls: Vec<F> = self.members.iter().map(|member| call(member.client.clone())).collect();
        let (mut answers, mut silent) = (Vec::new(), Vec::new());
        for (member, answer) in self.members.iter().zip(each(calls).await) {
            match answer {
                Ok(answer) => answers.push((member, answer)),
                Err(reason) => silent.push(Silent {
                    label: member.label.clone(),
                    address: member.address.clone(),
                    is_lost: member.is_lost,
                    reason,
                }),
            }
        }
        Answers { answers, silent }
    }

    /// The VMs of all hosts, each with the name of its host. Which do not answer is said on
    /// standard error; [`Cluster::complete`] makes an error of it.
    pub async fn vms(&self) -> Answers<'_, Vec<Vm>> {
        let mut asked = self.ask(|mut client| async move { all_vms(&mut client).await }).await;
        asked.report();
        for (member, vms) in &mut asked.answers {
            vms.iter_mut().for_each(|vm| vm.host.clone_from(&member.label));
        }
        asked
    }

    /// An error if some hosts did not answer: then what was listed is not complete.
    pub fn complete<T>(&self, asked: &Answers<'_, T>) -> Result<(), CtlError> {
        let mut silent = self.silent.iter().chain(&asked.silent);
        let Some(first) = silent.next() else { return Ok(()) };
        let (failed, all) = (silent.count() + 1, self.members.len() + self.silent.len());
        Err(CtlError::Incomplete { failed, all, code: first.reason.exit_code() })
    }

    /// The UUID of a family that is named by any of its VMs, or by that UUID.
    ///
    /// # Errors
    /// As [`Cluster::find`].
    pub async fn family(&self, named: &str, care: Care) -> Result<String, CtlError> {
        match named.parse::<Uuid>() {
            Ok(uuid) => Ok(uuid.to_string()),
            Err(_) => Ok(self.find(named, care).await?.1.family),
        }
    }

    /// The one host that has a VM of this name, and the VM.
    ///
    /// # Errors
    /// No host has it, or several have; or one that does not answer may have it too, and `care` is
    /// to be taken.
    pub async fn find(&self, name: &str, care: Care) -> Result<(&Member, Vm), CtlError> {
        let asked = self.ask(|mut client| {
            let request = GetVmRequest { name: name.to_owned() };
            async move {
                match client.get_vm(request).await {
                    Ok(vm) => Ok(Some(vm.into_inner())),
                    Err(status) if status.code() == Code::NotFound => Ok(None),
                    Err(status) => Err(status.into()),
                }
            }
        });
        let Answers { answers, silent } = asked.await;
        silent.iter().for_each(Silent::report);
        let silent: Vec<&Silent> = self.silent.iter().chain(&silent).collect();
        let asked = named(answers.iter().map(|(member, _)| member.label.clone()));
        let mut found = answers.into_iter().filter_map(|(member, vm)| Some((member, vm?)));
        let name = name.to_owned();
        let Some((member, vm)) = found.next() else {
            let Some(first) = silent.first() else { return Err(FindError::None { name, asked }.into()) };
            let code = first.reason.exit_code();
            let silent = named(silent.iter().map(|host| host.label.clone()));
            let asked = if asked.is_empty() { "none".to_owned() } else { asked };
            return Err(FindError::PerhapsNone { name, asked, silent, code }.into());
        };
        let others: Vec<&Member> = found.map(|(member, _)| member).collect();
        if !others.is_empty() {
            let all = [member].into_iter().chain(others);
            let places = named(all.map(|host| format!("{} (--host {})", host.label, host.address)));
            return Err(FindError::Several { name, places }.into());
        }
        // The clones of a lost host count as ended.
        match silent.iter().find(|host| care == Care::Change && !host.is_lost) {
            Some(other) => Err(FindError::PerhapsSeveral {
                name,
                host: member.label.clone(),
                address: member.address.clone(),
                silent: other.label.clone(),
                code: other.reason.exit_code(),
            }
            .into()),
            None => Ok((member, Vm { host: member.label.clone(), ..vm })),
        }
    }
}

/// Where the VMs are that a command names.
#[derive(Debug, Clone)]
pub enum Place {
    /// On the host that the command line names.
    One(Client),
    /// On any host.
    All(Arc<Cluster>),
}

impl Place {
    /// A connection to the vmmd that has the VM.
    ///
    /// # Errors
    /// As [`Cluster::find`]. On one host the VM is not looked for.
    pub async fn client(&self, name: &str, care: Care) -> Result<Client, CtlError> {
        match self {
            Self::One(client) => Ok(client.clone()),
            Self::All(cluster) => Ok(cluster.find(name, care).await?.0.client.clone()),
        }
    }
}

impl Context {
    /// Where the VMs are that a command names.
    pub async fn place(&self, place: Where) -> Result<Place, CtlError> {
        if place.all_hosts {
            Ok(Place::All(Arc::new(Cluster::reach(self).await?)))
        } else {
            Ok(Place::One(self.client().await?))
        }
    }

    /// A connection to the vmmd that has the one VM that a command names.
    pub async fn client_of(&self, place: Where, name: &str, care: Care) -> Result<Client, CtlError> {
        self.place(place).await?.client(name, care).await
    }
}

/// In the order of their names.
fn list(hosts: Vec<hosts::HostView>) -> Vec<Listed> {
    let mut names: HashMap<String, usize> = HashMap::new();
    for host in &hosts {
        *names.entry(host.name.clone()).or_default() += 1;
    }
    let label = |host: &hosts::HostView| {
        if host.name.is_empty() || names.get(&host.name).is_some_and(|&count| count > 1) {
            host.id.clone()
        } else {
            host.name.clone()
        }
    };
    let mut listed: Vec<Listed> = hosts
        .into_iter()
        .map(|host| Listed {
            label: label(&host),
            is_lost: host.state == hosts::LOST,
            id: host.id,
            address: host.address,
        })
        .collect();
    listed.sort_by(|a, b| (&a.label, &a.id).cmp(&(&b.label, &b.id)));
    listed
}

/// Connects to a host, and makes sure that it is that host: on another machine the path of its Unix
/// socket may be another vmmd's.
async fn connect(host: Listed, known: Option<Client>, security: Security) -> Result<Client, CtlError> {
    if let Some(client) = known {
        return Ok(client);
    }
    let mut client = client::connect_told(&host.address, &security).await?;
    let is = client.get_host(GetHostRequest {}).await?.into_inner().id;
    if is == host.id { Ok(client) } else { Err(CtlError::OtherHost { wanted: host.id, is }) }
}

/// Does all of these, some at a time, each within its time limit. What came of them, in their
/// order.
async fn each<T, F>(jobs: Vec<F>) -> Vec<Result<T, CtlError>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, CtlError>> + Send + 'static,
{
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (index, job) in jobs.into_iter().enumerate() {
        let turns = Arc::clone(&turns);
        tasks.spawn(async move {
            // It is never closed.
            let _turn = turns.acquire_owned().await;
            (index, timeout(PATIENCE, job).await.unwrap_or(Err(CtlError::Slow(PATIENCE))))
        });
    }
    let mut done = tasks.join_all().await;
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

/// The names of hosts, not too many.
fn named(labels: impl Iterator<Item = String>) -> String {
    let labels: Vec<String> = labels.collect();
    let shown = labels.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match labels.len().saturating_sub(NAMED_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use patina_proto::v1::{HostInfo, HostState, HostStatus};

    #[test]
    fn hosts_are_in_the_order_of_their_names_and_told_apart() {
        let host = |id: &str, name: &str, state: HostState| {
            let info = HostInfo { id: id.into(), name: name.into(), ..HostInfo::default() };
            HostStatus { info: Some(info), state: state.into(), ..HostStatus::default() }.into()
        };
        let (up, lost) = (HostState::Up, HostState::Lost);
        let hosts =
            vec![host("9", "b", up), host("2", "same", lost), host("1", "same", up), host("3", "", up)];
        let listed = list(hosts);
        let labels: Vec<_> = listed.iter().map(|host| (host.label.as_str(), host.is_lost)).collect();
        assert_eq!(labels, [("1", false), ("2", true), ("3", false), ("b", false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_are_asked_at_once_and_each_has_its_own_time() {
        let busy = Arc::new(std::sync::Mutex::new((0, 0)));
        let jobs: Vec<_> = (0..3 * AT_ONCE)
            .map(|number| {
                let busy = Arc::clone(&busy);
                async move {
                    {
                        let mut busy = busy.lock().unwrap();
                        busy.0 += 1;
                        busy.1 = busy.1.max(busy.0);
                    }
                    // The clock of this test goes on when all wait.
                    tokio::time::sleep(PATIENCE / 2).await;
                    busy.lock().unwrap().0 -= 1;
                    if number == 0 {
                        std::future::pending::<()>().await;
                    }
                    Ok(number)
                }
            })
            .collect();
        let done = each(jobs).await;
        assert!(matches!(done[0], Err(CtlError::Slow(_))), "{:?}", done[0]);
        assert!(
            done[1..]
                .iter()
                .enumerate()
                .all(|(index, done)| matches!(done, Ok(number) if *number == index + 1))
        );
        assert_eq!(busy.lock().unwrap().1, AT_ONCE);
    }

    #[test]
    fn a_message_names_some_hosts() {
        let labels = |count: usize| named((0..count).map(|number| format!("h{number}")));
        assert_eq!(labels(2), "h0, h1");
        assert!(labels(NAMED_MAX + 3).ends_with("and 3 more"));
    }
}
