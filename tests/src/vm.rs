//! One VM of a [`Host`]: runs programs in it, examines it, ends it.

use crate::{
    host::{Host, HostError, succeeded},
    process::Output,
};
use serde_json::Value;
use std::fs;

/// A VM by name. Dropping it does nothing: its host ends it.
#[derive(Debug, Clone)]
pub struct Vm<'a> {
    host: &'a Host,
    name: String,
}

impl Host {
    /// Runs a VM (`vmctl run --name NAME ARGUMENTS…`) and waits until its agent is ready.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn run(&self, name: &str, arguments: &[&str]) -> Result<Vm<'_>, HostError> {
        self.call(&[&["run", "--name", name], arguments].concat())?;
        Ok(Vm::new(self, name))
    }

    /// A VM that is there already.
    #[must_use]
    pub fn vm(&self, name: &str) -> Vm<'_> {
        Vm::new(self, name)
    }
}

impl<'a> Vm<'a> {
    fn new(host: &'a Host, name: &str) -> Self {
        Self { host, name: name.to_owned() }
    }

    /// The VM's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Another VM of the same host.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Self {
        Self::new(self.host, name)
    }

    /// Waits until its agent is ready.
    ///
    /// # Errors
    /// It is not within two minutes.
    pub fn wait_ready(&self) -> Result<(), HostError> {
        self.host.call(&["wait", &self.name, "--until", "ready", "--timeout", "120"]).map(|_| ())
    }

    /// Runs a program in it, whatever its exit code.
    ///
    /// # Errors
    /// `vmctl` could not be run to its end.
    pub fn exec(&self, argv: &[&str]) -> Result<Output, HostError> {
        self.exec_with_input(argv, b"")
    }

    /// Runs a program in it with `input` on its standard input.
    ///
    /// # Errors
    /// `vmctl` could not be run to its end.
    pub fn exec_with_input(&self, argv: &[&str], input: &[u8]) -> Result<Output, HostError> {
        self.host.vmctl_with_input(&self.exec_arguments(argv), input)
    }

    /// Runs a program in it that must work: what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0.
    pub fn call(&self, argv: &[&str]) -> Result<String, HostError> {
        succeeded(&self.exec_arguments(argv), &self.exec(argv)?)
    }

    /// Runs a shell script in it that must work: what it printed.
    ///
    /// # Errors
    /// Its exit code is not 0.
    pub fn sh(&self, script: &str) -> Result<String, HostError> {
        self.call(&["sh", "-c", script])
    }

    /// Puts a program from the tests' guest programs into it, unless it is there: where it is in
    /// the guest.
    ///
    /// # Errors
    /// The program is not built, or the guest does not take it.
    pub fn install(&self, program: &str) -> Result<String, HostError> {
        let file = self.host.setup().guest_bin_dir.join(program);
        let bytes = fs::read(&file)
            .map_err(|source| HostError::System { what: "read a guest program of the tests", source })?;
        let place = format!("/tmp/{program}");
        // It may only be run when all of it is there.
        if self.exec(&["test", "-x", &place])?.code == 0 {
            return Ok(place);
        }
        self.feed(&format!("cat > {place} && chmod 755 {place}"), &bytes)?;
        Ok(place)
    }

    /// Writes a file in it.
    ///
    /// # Errors
    /// The guest does not take it.
    pub fn put(&self, place: &str, bytes: &[u8]) -> Result<(), HostError> {
        self.feed(&format!("cat > {place}"), bytes)
    }

    fn feed(&self, script: &str, input: &[u8]) -> Result<(), HostError> {
        let argv = ["sh", "-c", script];
        succeeded(&self.exec_arguments(&argv), &self.exec_with_input(&argv, input)?).map(drop)
    }

    /// What `vmctl inspect` says of it.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn inspect(&self) -> Result<Value, HostError> {
        self.host.json(&["inspect", &self.name])
    }

    /// A text field of `vmctl inspect`; empty when it is not there.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn field(&self, name: &str) -> Result<String, HostError> {
        Ok(self.inspect()?[name].as_str().unwrap_or_default().to_owned())
    }

    /// A number of `vmctl inspect`; 0 when it is not there.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn field_number(&self, name: &str) -> Result<u64, HostError> {
        Ok(self.inspect()?[name].as_u64().unwrap_or_default())
    }

    /// Waits until it has ended: its end kind and reason.
    ///
    /// # Errors
    /// It does not end within two minutes.
    pub fn wait_ended(&self) -> Result<(String, String), HostError> {
        self.host.call(&["wait", &self.name, "--until", "ended", "--timeout", "120"])?;
        Ok((self.field("end_kind")?, self.field("end_reason")?))
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn kill(&self) -> Result<(), HostError> {
        self.host.call(&["kill", &self.name]).map(|_| ())
    }

    /// Ends and forgets it.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn remove(&self) -> Result<(), HostError> {
        self.host.call(&["rm", "-f", &self.name]).map(|_| ())
    }

    /// What its console has printed.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn console(&self) -> Result<String, HostError> {
        self.host.call(&["logs", &self.name])
    }

    fn exec_arguments<'b>(&'b self, argv: &[&'b str]) -> Vec<&'b str> {
        [&["exec", self.name.as_str(), "--"], argv].concat()
    }
}
