use super::*;
use proptest::prelude::*;

const FAMILY: Uuid = Uuid::from_u128(77);

fn id(host: usize) -> Uuid {
    Uuid::from_u128(host as u128 + 1)
}

fn place(host: usize) -> Place {
    let overlay = format!("198.18.{}.{}:4789", host / 250, host % 250 + 1).parse().unwrap();
    Place { address: format!("unix:/{host}"), overlay }
}

fn ip(host: usize) -> IpAddr {
    place(host).overlay.ip()
}

fn net() -> FamilyNet {
    FamilyNet { index: 3, base: "100.64.48.0".parse().unwrap() }
}

fn on(host: usize, vmids: &[u32]) -> OnHost {
    OnHost { host: id(host), place: place(host), vmids: vmids.iter().copied().collect() }
}

fn book(host: usize) -> Book {
    Book::new(id(host), place(host), 1)
}

fn says(host: usize, number: u64, vmids: &[u32], others: &[OnHost]) -> Told {
    let version = Version { start: 1, number };
    Told { family: FAMILY, version, speaker: on(host, vmids), others: others.to_vec() }
}

/// Host 0 with VM 0, which has had VM 1 made on host 1.
fn two() -> Book {
    let mut book = book(0);
    book.announce(FAMILY, net(), [0].into(), vec![on(1, &[1])]);
    book.hear(&says(1, 1, &[1], &[]), Came::AsAnswer).unwrap();
    book.answered(FAMILY, id(1), &[1]);
    book
}

fn routes(book: &Book) -> Vec<(u32, IpAddr)> {
    book.routes(FAMILY).into_iter().collect()
}

#[test]
fn clones_elsewhere_are_known_before_they_are_made_and_forgotten_if_they_are_not() {
    let mut book = book(0);
    book.announce(FAMILY, net(), [0].into(), vec![on(1, &[1, 2]), on(2, &[3])]);
    assert_eq!(routes(&book), [(1, ip(1)), (2, ip(1)), (3, ip(2))]);
    assert!(book.begin_telling().is_empty(), "they hear with the call for clones");
    let said = book.tell(FAMILY);
    assert_eq!((said.speaker, said.others), (on(0, &[0]), vec![on(1, &[1, 2]), on(2, &[3])]));
    // One host makes one of two; the other one does not answer.
    book.hear(&says(1, 4, &[2], &[]), Came::AsAnswer).unwrap();
    book.answered(FAMILY, id(1), &[1, 2]);
    book.answered(FAMILY, id(2), &[3]);
    assert_eq!(routes(&book), [(2, ip(1))]);
}

#[test]
fn an_older_message_does_not_win_in_whatever_order_they_come() {
    let mut book = two();
    assert!(book.hear(&says(1, 9, &[1, 4], &[]), Came::AsNews).unwrap());
    assert!(!book.hear(&says(1, 8, &[1], &[]), Came::AsNews).unwrap());
    assert!(!book.hear(&says(1, 9, &[1, 4], &[]), Came::AsNews).unwrap());
    assert_eq!(routes(&book), [(1, ip(1)), (4, ip(1))]);
    // A vmmd that was started again is newer, whatever it counts.
    let mut again = says(1, 1, &[1], &[]);
    again.version.start = 2;
    assert!(book.hear(&again, Came::AsNews).unwrap());
    assert_eq!(routes(&book), [(1, ip(1))]);
    // One that has none any more may come back, but not with what is old.
    again.version.number = 2;
    again.speaker.vmids.clear();
    assert!(book.hear(&again, Came::AsNews).unwrap() && routes(&book).is_empty());
    assert!(!book.hear(&says(1, 9, &[1, 4], &[]), Came::AsNews).unwrap() && routes(&book).is_empty());
}

#[test]
fn a_host_speaks_only_for_itself_and_only_if_it_was_named() {
    let mut book = two();
    assert!(matches!(book.hear(&says(5, 1, &[9], &[]), Came::AsNews), Err(TellError::Unknown(_))));
    assert!(matches!(book.hear(&says(0, 1, &[9], &[]), Came::AsNews), Err(TellError::Own(_))));
    let foreign = Told { family: Uuid::from_u128(78), ..says(1, 5, &[9], &[]) };
    assert!(matches!(book.hear(&foreign, Came::AsNews), Err(TellError::Unknown(_))));
    // VMs of this host and of others are not taken over; a host that is known is not spoken for.
    let others = [on(2, &[0, 1, 3]), on(0, &[8])];
    book.hear(&says(1, 5, &[0, 1], &others), Came::AsNews).unwrap();
    book.hear(&says(2, 1, &[1, 3], &[on(1, &[7])]), Came::AsNews).unwrap();
    assert_eq!(routes(&book), [(1, ip(1)), (3, ip(2))]);
    // Where a host is, only it or the scheduler says; who answers elsewhere is not believed.
    let mut astray = on(3, &[6]);
    astray.place = place(4);
    book.hear(&says(1, 6, &[1], &[astray]), Came::AsNews).unwrap();
    book.hear(&says(3, 1, &[9], &[]), Came::AsAnswer).unwrap();
    assert!(!book.routes(FAMILY).contains_key(&9));
    book.hear(&says(3, 1, &[9], &[]), Came::AsNews).unwrap();
    assert_eq!(book.routes(FAMILY).get(&9), Some(&ip(3)));
}

#[test]
fn hosts_are_bounded_and_those_without_vms_make_room() {
    let mut book = two();
    let named: Vec<_> = (2..400_u32).map(|host| on(host as usize, &[host])).collect();
    book.hear(&says(1, 5, &[1], &named), Came::AsNews).unwrap();
    assert_eq!(book.saved(FAMILY).unwrap().1.len(), HOSTS_MAX);
    assert!(matches!(book.hear(&says(999, 1, &[999], &[]), Came::WithClones), Err(TellError::TooMany(_))));
    book.hear(&says(2, 1, &[], &[]), Came::AsNews).unwrap();
    book.hear(&says(999, 1, &[999], &[]), Came::WithClones).unwrap();
    assert_eq!(book.saved(FAMILY).unwrap().1.len(), HOSTS_MAX);
}

#[test]
fn a_family_is_forgotten_when_no_vm_is_here_and_all_others_know_that() {
    let mut book = two();
    assert!(book.set_own(FAMILY, BTreeSet::new()) && !book.set_own(FAMILY, BTreeSet::new()));
    assert_eq!(book.begin_telling(), [(FAMILY, id(1))]);
    assert!(book.begin_telling().is_empty(), "somebody does");
    let (_, told) = book.next_for(FAMILY, id(1)).unwrap();
    assert!(told.speaker.vmids.is_empty());
    book.heard_by(FAMILY, id(1), told.version);
    assert!(book.next_for(FAMILY, id(1)).is_none() && book.net(FAMILY).is_none());
    assert!(book.tell(FAMILY).version > told.version, "whoever asks hears what is newer");
    // A host that does not answer is given up, but not as long as VMs are here.
    let mut book = two();
    assert!(!book.give_up(FAMILY, id(1)));
    book.set_own(FAMILY, BTreeSet::new());
    assert!(book.give_up(FAMILY, id(1)) && book.net(FAMILY).is_none());
}

#[test]
fn another_vmmd_goes_on_with_what_was_written_down() {
    let book = two();
    let (net, hosts) = book.saved(FAMILY).unwrap();
    let mut again = Book::new(id(0), place(0), 2);
    again.restore(FAMILY, net, [0].into(), hosts.clone());
    assert_eq!(routes(&again), [(1, ip(1))]);
    assert!(!again.hear(&says(1, 1, &[1, 9], &[]), Came::AsNews).unwrap(), "it was heard before");
    assert_eq!(again.begin_telling(), [(FAMILY, id(1))]);
    assert!(again.tell(FAMILY).version > book.families.get(&FAMILY).map(|_| book.version).unwrap());
    let mut ended = Book::new(id(0), place(0), 2);
    ended.restore(FAMILY, net, BTreeSet::new(), hosts);
    assert_eq!(ended.begin_telling(), [(FAMILY, id(1))], "that all has ended here");
}

/// Hosts and what is on its way between them.
struct World {
    books: Vec<Book>,
    lives: Vec<BTreeSet<u32>>,
    next_vmid: u32,
    /// To a host, as news; answers go back at once, or are lost.
    mail: Vec<(usize, usize, Told)>,
}

#[derive(Debug, Clone)]
enum Step {
    /// A host with a VM has one more made on each of some.
    Spawn {
        on: usize,
        to: Vec<usize>,
        lost: usize,
    },
    End {
        on: usize,
        which: usize,
    },
    Again {
        on: usize,
    },
    Send,
    Deliver {
        which: usize,
        keep: bool,
    },
    Lose {
        which: usize,
    },
}

impl World {
    fn new(hosts: usize) -> Self {
        let mut lives = vec![BTreeSet::new(); hosts];
        lives[0].insert(0);
        Self { books: (0..hosts).map(book).collect(), lives, next_vmid: 1, mail: Vec::new() }
    }

    fn spawn(&mut self, from: usize, to: &[usize], lost: usize) {
        if self.lives[from].is_empty() {
            return;
        }
        let to: BTreeSet<_> = to.iter().copied().filter(|host| *host != from).collect();
        let there: Vec<_> = to
            .iter()
            .map(|host| {
                self.next_vmid += 1;
                (*host, on(*host, &[self.next_vmid - 1]))
            })
            .collect();
        let all = there.iter().map(|(_, on)| on.clone()).collect();
        self.books[from].announce(FAMILY, net(), self.lives[from].clone(), all);
        let told = self.books[from].tell(FAMILY);
        for (number, (host, of)) in there.into_iter().enumerate() {
            let vmids: Vec<u32> = of.vmids.iter().copied().collect();
            // Some calls do not arrive, of others the answer does not.
            if number != lost {
                self.lives[host].extend(&vmids);
                let book = &mut self.books[host];
                book.join(FAMILY, net(), self.lives[host].clone());
                book.hear(&told, Came::WithClones).unwrap();
                let answer = book.tell(FAMILY);
                if number != lost + 1 {
                    self.books[from].hear(&answer, Came::AsAnswer).ok();
                }
            }
            self.books[from].answered(FAMILY, id(host), &vmids);
        }
    }

    fn send(&mut self) {
        for host in 0..self.books.len() {
            for (_, to) in self.books[host].begin_telling() {
                let Some((_, told)) = self.books[host].next_for(FAMILY, to) else { continue };
                let to = to.as_u128() as usize - 1;
                self.mail.push((host, to, told));
            }
        }
    }

    fn deliver(&mut self, which: usize, keep: bool) {
        if self.mail.is_empty() {
            return;
        }
        let which = which % self.mail.len();
        let (from, to, told) = if keep { self.mail[which].clone() } else { self.mail.remove(which) };
        self.books[to].set_own(FAMILY, self.lives[to].clone());
        let is_here = self.books[to].net(FAMILY).is_some();
        if is_here && self.books[to].hear(&told, Came::AsNews).is_err() {
            return self.stop(from, to);
        }
        let answer = self.books[to].tell(FAMILY);
        let book = &mut self.books[from];
        book.hear(&answer, Came::AsAnswer).ok();
        book.heard_by(FAMILY, id(to), told.version);
        self.stop(from, to);
    }

    /// Whoever told it is told anew what there is.
    fn stop(&mut self, from: usize, to: usize) {
        let known =
            self.books[from].families.get_mut(&FAMILY).and_then(|family| family.hosts.get_mut(&id(to)));
        if let Some(known) = known {
            known.is_being_told = false;
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Spawn { on, to, lost } => self.spawn(on, &to, lost),
            Step::End { on, which } => {
                let lives = &mut self.lives[on];
                if let Some(vmid) = lives.iter().nth(which).copied() {
                    lives.remove(&vmid);
                }
                let own = lives.clone();
                self.books[on].set_own(FAMILY, own);
            }
            // Another vmmd, with what was written down.
            Step::Again { on } => {
                let saved = self.books[on].saved(FAMILY);
                let start = self.books[on].version.start + 1;
                self.books[on] = Book::new(id(on), place(on), start);
                if let Some((net, hosts)) = saved {
                    self.books[on].restore(FAMILY, net, self.lives[on].clone(), hosts);
                }
            }
            Step::Send => self.send(),
            Step::Deliver { which, keep } => self.deliver(which, keep),
            Step::Lose { which } => {
                if !self.mail.is_empty() {
                    let (from, to, _) = self.mail.remove(which % self.mail.len());
                    self.stop(from, to);
                }
            }
        }
    }

    /// No more is lost.
    fn settle(&mut self) {
        for round in 0.. {
            self.send();
            if self.mail.is_empty() {
                return;
            }
            assert!(round < 1000, "they never stop: {:?}", self.mail);
            while !self.mail.is_empty() {
                self.deliver(0, false);
            }
        }
    }

    fn check(&self) {
        let all: BTreeMap<u32, IpAddr> = (0..self.books.len())
            .flat_map(|host| self.lives[host].iter().map(move |vmid| (*vmid, ip(host))))
            .collect();
        for (host, book) in self.books.iter().enumerate() {
            let own = &self.lives[host];
            let is_over_several = all.len() > own.len();
            if own.is_empty() {
                assert_eq!(book.net(FAMILY), None, "host {host} has forgotten it");
            } else if is_over_several || book.net(FAMILY).is_some() {
                let elsewhere = all.iter().filter(|(vmid, _)| !own.contains(vmid));
                let elsewhere: BTreeMap<_, _> = elsewhere.map(|(vmid, ip)| (*vmid, *ip)).collect();
                assert_eq!(book.routes(FAMILY), elsewhere, "host {host}");
            }
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let host = || 0..4_usize;
    prop_oneof![
        3 => (host(), prop::collection::vec(host(), 1..4), 0..12_usize)
            .prop_map(|(on, to, lost)| Step::Spawn { on, to, lost }),
        3 => (host(), 0..3_usize).prop_map(|(on, which)| Step::End { on, which }),
        1 => host().prop_map(|on| Step::Again { on }),
        4 => Just(Step::Send),
        6 => (0..9_usize, any::<bool>()).prop_map(|(which, keep)| Step::Deliver { which, keep }),
        2 => (0..9_usize).prop_map(|which| Step::Lose { which }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is lost, late or comes twice, and whoever is started again: once all arrives, each
    /// host knows where all VMs are.
    #[test]
    fn all_hosts_know_all_vms_in_the_end(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new(4);
        for step in steps {
            world.step(step);
        }
        world.settle();
        // As all is told again from time to time.
        world.books.iter_mut().for_each(Book::tell_again);
        world.settle();
        world.check();
    }
}
