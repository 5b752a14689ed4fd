//! Programs in the guest: reads their calls, and answers them or passes them to the host.

use super::local::{AGAIN, CLIENTS_MAX, Client, refuse};
use super::{Agent, AgentError, accept, calls};
use crate::machine::Machine;
use patina_abi::link::Answer;
use patina_abi::local::Request;
use rustix::event::PollFlags;

impl<M: Machine> Agent<M> {
    pub(super) fn accept_client(&mut self) -> Result<(), AgentError> {
        let Some(socket) = accept(&self.local, "a program")? else { return Ok(()) };
        self.clients_so_far += 1;
        let mut client = Client::new(self.clients_so_far, socket);
        if self.clients.len() >= CLIENTS_MAX {
            let text = format!("connect: {CLIENTS_MAX} programs are connected already; try again later");
            client.answer(&refuse(AGAIN, text));
            return Ok(());
        }
        self.clients.push(client);
        Ok(())
    }

    pub(super) fn drive_client(&mut self, index: usize, ready: PollFlags) {
        let Some(client) = self.clients.get_mut(index) else { return };
        client.drive(ready);
        self.serve(index);
    }

    /// Answers the client's calls until one has to wait.
    fn serve(&mut self, index: usize) {
        while let Some((id, call)) = self.clients.get_mut(index).and_then(|c| Some((c.id, c.next_call()?))) {
            let answer = match calls::answer_here(&call.verb, self.identity.as_ref()) {
                Some(answer) => answer,
                None => match self.pass_on(id, call) {
                    Ok(()) => return,
                    Err(refusal) => refusal,
                },
            };
            if let Some(client) = self.clients.get_mut(index) {
                client.answer(&answer);
            }
        }
    }

    fn pass_on(&mut self, client: u64, call: Request) -> Result<(), Answer> {
        match call.verb.as_str() {
            "clone" => {
                let caller = self.clients.iter().find(|c| c.id == client).and_then(Client::process);
                self.call_clone(client, caller, call.args)
            }
            _ => self.forward(client, call),
        }
    }

    /// Sends a call on to the host, or says why not.
    pub(super) fn forward(&mut self, client: u64, mut call: Request) -> Result<(), Answer> {
        if !self.link.is_up() {
            return Err(calls::link_down(&call.verb));
        }
        // Calls that were taken back are not counted any more, but may still wait for a host that
        // does not read.
        if self.link.is_full() {
            return Err(refuse(AGAIN, "the host is slow to take calls; try again later"));
        }
        self.rounds.ask(client, &mut call, self.identity.as_ref());
        let line = self.calls.open(client, call)?;
        // On a failure every call that waits is answered, this one included.
        if let Err(error) = self.link.send_line(&line) {
            self.link_lost(&error);
        }
        Ok(())
    }

    /// Forgets programs that have gone, and tells the host of those that wait for it. Whether there
    /// were any.
    pub(super) fn forget_clients(&mut self) -> bool {
        let mut gone = Vec::new();
        self.clients.retain(|client| {
            let is_done = client.is_done();
            if is_done {
                self.rounds.forget(client.id);
                gone.push(client.id);
            }
            !is_done
        });
        let any = !gone.is_empty();
        for client in gone {
            self.abandon_clone(client);
            let line = self.calls.abandon(client);
            let told = line.and_then(|line| line.map_or(Ok(()), |line| self.link.send_line(&line)));
            if let Err(error) = told {
                self.link_lost(&error);
            }
        }
        any
    }

    /// Answers a program that waits; one that did not wait is not there any more.
    pub(super) fn answer_client(&mut self, id: u64, answer: &Answer) {
        let Some(index) = self.clients.iter().position(|c| c.id == id) else { return };
        if let Some(client) = self.clients.get_mut(index) {
            client.answer(answer);
            if client.is_gone() {
                self.rounds.forget(id);
            }
            self.rounds.answered(id, answer);
        }
        self.serve(index);
    }
}
