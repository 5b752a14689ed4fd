//! Its agent: what runs in its guest, and what its guest asks of vmmd.

use super::{
    Vm,
    wire::{frame, put, try_say},
};
use patina_abi::{
    exec::{Exit, FrameType, Start},
    link::Answer,
};
use patina_control::messages::FromVmm;
use std::{
    io::BufReader,
    os::unix::net::UnixStream,
    path::Path,
    sync::{atomic::Ordering, mpsc},
    thread,
    time::Duration,
};

impl Vm {
    fn ask(&self, verb: &str, args: &str) -> String {
        let answer = self.begin(verb, args).1.recv_timeout(Duration::from_secs(20)).unwrap();
        serde_json::to_string(&answer).unwrap()
    }

    fn begin(&self, verb: &str, args: &str) -> (u64, mpsc::Receiver<Answer>) {
        let (sender, receiver) = mpsc::channel();
        // One of a session's own, whatever other sessions ask.
        let id = u64::from(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs()) << 32
            | self.waiting.lock().unwrap().len() as u64;
        self.waiting.lock().unwrap().insert(id, sender);
        let args = serde_json::from_str(args).unwrap();
        let request = FromVmm::GuestRequest { id, verb: verb.into(), args };
        self.tell(&request);
        (id, receiver)
    }

    fn cancel(&self, verb: &str, args: &str, path: &str) {
        let (id, _answer) = self.begin(verb, args);
        while !Path::new(path).exists() {
            thread::sleep(Duration::from_millis(5));
        }
        self.waiting.lock().unwrap().remove(&id);
        self.tell(&FromVmm::GuestCancel { id });
    }

    /// Says a line on the control connection. A vmmd that was just started again may not have made
    /// one yet, and what is here is that of the vmmd that was killed: then it waits for the new
    /// one.
    fn tell(&self, line: &FromVmm) {
        while !self.control.lock().unwrap().as_mut().is_some_and(|control| try_say(control, line)) {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Breaks the control connection under a call that is not answered, and waits until there is
    /// another; the call is one that waits.
    fn hang_up(&self) {
        let before = self.controls.load(Ordering::Relaxed);
        self.control.lock().unwrap().take().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
        while self.controls.load(Ordering::Relaxed) == before || self.control.lock().unwrap().is_none() {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Without what it needs the guest, whose vmm cannot go on, waits to be ended.
    fn read(&self, run: &str) -> String {
        let _vcpu = self.vcpu.lock().unwrap();
        loop {
            match self.ram.get().unwrap().line(run.parse().unwrap()) {
                Ok(line) => return line,
                Err(error) => patina_daemon::say!("read RAM: {error}"),
            }
            thread::park();
        }
    }

    pub fn agent(&self, mut reader: BufReader<UnixStream>, mut stream: UnixStream) {
        let (kind, start) = frame(&mut reader).unwrap();
        assert_eq!(kind, FrameType::Start);
        let start: Start = serde_json::from_slice(&start).unwrap();
        let words: Vec<&str> = start.argv.iter().map(String::as_str).collect();
        let mut exit = Exit { code: Some(0), ..Exit::default() };
        match words.as_slice() {
            ["echo", words @ ..] => put(&mut stream, FrameType::Stdout, words.join(" ").as_bytes()),
            ["ask", verb, args] => put(&mut stream, FrameType::Stdout, self.ask(verb, args).as_bytes()),
            ["drop", verb, args, path] => self.cancel(verb, args, path),
            ["hang-up"] => self.hang_up(),
            ["fail", code] => exit.code = Some(code.parse().unwrap()),
            ["read", run] => put(&mut stream, FrameType::Stdout, self.read(run).as_bytes()),
            ["cat"] => {
                while let Some((FrameType::Stdin, bytes)) = frame(&mut reader).filter(|f| !f.1.is_empty()) {
                    put(&mut stream, FrameType::Stdout, &bytes);
                }
            }
            ["hang"] => {
                put(&mut stream, FrameType::Stdout, b"hanging");
                while frame(&mut reader).is_some() {}
                patina_daemon::say!("session closed");
                return;
            }
            _ => exit = Exit { error: Some("not found".into()), ..Exit::default() },
        }
        put(&mut stream, FrameType::Exit, &serde_json::to_vec(&exit).unwrap());
    }
}
