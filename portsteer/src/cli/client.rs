//! Asking the agent: HTTP over its Unix socket.

use std::{io, path::PathBuf, time::Duration};

use clap::Args;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Bytes,
    client::conn::http1,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{net::UnixStream, time::timeout};

use super::{BAD_INPUT, InstanceArgument, NEGATIVE, REFUSED, complain, print_error};
use crate::{
    api::{ErrorAnswer, INSTANCE_HEADER, Kind, MAX_REQUEST_LEN, Refusal, default_socket},
    dataplane::Instance,
};

/// Which agent is meant.
#[derive(Debug, Args)]
pub(super) struct AgentArgument {
    #[command(flatten)]
    pub instance: InstanceArgument,
    /// The agent's control socket, if it is not where it usually is.
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

impl AgentArgument {
    /// How the same agent is named once more, with a space before; empty for the usual one.
    pub fn again(&self) -> String {
        let mut text = String::new();
        if let Some(instance) = &self.instance.instance {
            text.push_str(&format!(" --instance {}", instance.name()));
        }
        if let Some(socket) = &self.socket {
            text.push_str(&format!(" --socket {}", socket.display()));
        }
        text
    }

    /// The agent's socket.
    pub fn path(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| default_socket(&self.instance.get()))
    }
}

/// An agent that listens.
#[derive(Debug)]
pub(super) struct Client {
    path: PathBuf,
    /// Whose agent it has to be, where that was said.
    expected: Option<Instance>,
    instance: Instance,
    /// How long an answer is waited for, if not for ever.
    patience: Option<Duration>,
}

/// For which policy in force a change is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meant {
    /// For any, or none.
    Any,
    /// For the one with this entity tag.
    Tagged(HeaderValue),
    /// For none: nothing was in force.
    Nothing,
}

impl Meant {
    /// For the one that an answer tells of. Agents of old versions do not name it.
    fn told(answer: &Response<Bytes>) -> Self {
        answer.headers().get(header::ETAG).cloned().map_or(Self::Any, Self::Tagged)
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody listens.
    NoAgent {
        path: PathBuf,
        source: io::Error,
        /// An agent of the instance that is meant, which listens somewhere else or nowhere.
        other: Option<u32>,
    },
    /// The agent does not answer in time.
    Silent { path: PathBuf, patience: Duration },
    /// What is in force is not what the change was meant for.
    Unmet(Refusal),
    /// The agent said no.
    Refused(Refusal),
    /// The agent cannot be understood.
    Broken(String),
}

impl Client {
    pub fn new(agent: &AgentArgument) -> Self {
        let expected = agent.instance.instance.clone();
        Self { path: agent.path(), expected, instance: agent.instance.get(), patience: None }
    }

    /// The same, but an answer is waited for no longer than this.
    pub fn waiting(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.understand(self.ask(Method::GET, path, None, &Meant::Any)?)
    }

    /// The same, and which policy it tells of.
    pub fn get_named<T: DeserializeOwned>(&self, path: &str) -> Result<(T, Meant), Failure> {
        let answer = self.ask(Method::GET, path, None, &Meant::Any)?;
        let meant = Meant::told(&answer);
        Ok((self.understand(answer)?, meant))
    }

    /// What is in force now, for a change that is meant for nothing else.
    pub fn in_force(&self) -> Result<Meant, Failure> {
        const POLICY: &str = "/v1/policy";
        let answer = self.ask(Method::HEAD, POLICY, None, &Meant::Any)?;
        match answer.status() {
            status if status.is_success() => Ok(Meant::told(&answer)),
            StatusCode::NOT_FOUND => Ok(Meant::Nothing),
            // Such an answer has no words.
            status => Err(self.get::<Value>(POLICY).err().unwrap_or_else(|| {
                Failure::Broken(format!("{}: HEAD {POLICY}: {status}", self.path.display()))
            })),
        }
    }

    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.post_meant(path, body, &Meant::Any)
    }

    /// The same for one policy alone.
    pub fn post_meant<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        meant: &Meant,
    ) -> Result<T, Failure> {
        self.understand(self.ask(Method::POST, path, Some(json(body)?), meant)?)
    }

    pub fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        self.understand(self.ask(Method::PUT, path, Some(json(body)?), &Meant::Any)?)
    }

    fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        meant: &Meant,
    ) -> Result<Response<Bytes>, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::Broken(error.to_string()))?;
        if let Some(body) = &body
            && body.len() > MAX_REQUEST_LEN
        {
            // The agent would hang up before it is sent.
            let message = format!(
                "the policy and its set files are longer than {} MiB, which the agent reads at most",
                MAX_REQUEST_LEN >> 20
            );
            let help = "`portsteer agent --policy FILE` reads longer ones from their files, and so does SIGHUP";
            return Err(Failure::Refused(Refusal::bad_input(message).help(help)));
        }
        runtime.block_on(async {
            let exchange = self.exchange(method, path, body, meant);
            let Some(patience) = self.patience else { return exchange.await };
            let silent = |_| Failure::Silent { path: self.path.clone(), patience };
            timeout(patience, exchange).await.map_err(silent)?
        })
    }

    fn understand<T: DeserializeOwned>(&self, answer: Response<Bytes>) -> Result<T, Failure> {
        let odd = |error: serde_json::Error| {
            let path = self.path.display();
            Failure::Broken(format!("{path}: the answer cannot be understood: {error}"))
        };
        let (status, body) = (answer.status(), answer.into_body());
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(odd);
        }
        let answer: ErrorAnswer = serde_json::from_slice(&body).map_err(odd)?;
        Err(match status {
            StatusCode::PRECONDITION_FAILED => Failure::Unmet(answer.error),
            _ => Failure::Refused(answer.error),
        })
    }
}

fn json(body: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(body).map_err(|error| Failure::Broken(format!("writing JSON: {error}")))
}

impl Client {
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        meant: &Meant,
    ) -> Result<Response<Bytes>, Failure> {
        let socket = &self.path;
        let stream = UnixStream::connect(socket).await.map_err(|source| Failure::NoAgent {
            path: socket.to_owned(),
            source,
            other: self.instance.holder(),
        })?;
        let broken = |what: &str, error: hyper::Error| {
            let mut text = format!("{}: {what}: {error}", socket.display());
            if let Some(cause) = std::error::Error::source(&error) {
                text.push_str(&format!(": {cause}"));
            }
            Failure::Broken(text)
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken("talking to the agent", error))?;
        let connection = tokio::spawn(connection);
        let changes = ![Method::GET, Method::HEAD].contains(&method);
        let mut request = Request::builder().method(method).uri(path);
        if let Some(instance) = &self.expected {
            request = request.header(INSTANCE_HEADER, instance.name());
        }
        request = match meant {
            Meant::Any => request,
            Meant::Tagged(tag) => request.header(header::IF_MATCH, tag),
            Meant::Nothing => request.header(header::IF_NONE_MATCH, "*"),
        };
        let request = request
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| Failure::Broken(error.to_string()))?;
        let answer = async {
            let (head, body) = sender.send_request(request).await?.into_parts();
            Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
        };
        let answer = answer.await.map_err(|error| match broken("the agent's answer", error) {
            Failure::Broken(text) if changes => {
                Failure::Broken(format!("{text}; `portsteer status` tells whether it took effect"))
            }
            failure => failure,
        });
        connection.abort();
        answer
    }
}

/// Where an agent is that runs and is not at the socket.
pub(super) fn agent_elsewhere(process: u32) -> String {
    format!(
        "an agent runs (process {process}), and listens somewhere else (`--socket`), or, started with `--for` or \
         `--ephemeral`, nowhere"
    )
}

impl Failure {
    /// Of a change that was not made, since it was meant for another policy than that in force: says which change it
    /// was, and what to do.
    pub fn for_another(self, what: &str, help: &str) -> Self {
        match self {
            Self::Unmet(Refusal { message, .. }) => {
                let refusal = Refusal::refused(format!("{what}: {message}"));
                Self::Unmet(
                    refusal.help(format!("it changed after this command had begun: {help}")),
                )
            }
            failure => failure,
        }
    }

    /// Whether nobody listens.
    pub const fn is_no_agent(&self) -> bool {
        matches!(self, Self::NoAgent { .. })
    }

    /// Says what it was. Returns the exit code.
    pub fn show(&self) -> u8 {
        match self {
            Self::NoAgent { path, source, other } => {
                let elsewhere = other.map(agent_elsewhere);
                let help = match source.kind() {
                    _ if elsewhere.is_some() => elsewhere.as_deref().unwrap_or_default(),
                    io::ErrorKind::PermissionDenied => {
                        "run portsteer as root, or as a member of the group that the agent's \
                         `socket_group` names"
                    }
                    _ => {
                        "start one: `portsteer agent --resume`, or `systemctl start portsteer`; \
                         `--instance` and `--socket` say which is meant"
                    }
                };
                complain(&format!("no agent answers at {}: {source}", path.display()), Some(help));
                REFUSED
            }
            Self::Unmet(refusal) | Self::Refused(refusal) => {
                if let Some(details) = &refusal.details {
                    print_error(details);
                }
                complain(&refusal.message, refusal.help.as_deref());
                match refusal.kind {
                    Kind::Negative => NEGATIVE,
                    Kind::BadInput => BAD_INPUT,
                    Kind::Refused => REFUSED,
                }
            }
            Self::Silent { path, patience } => {
                let seconds = patience.as_secs();
                complain(
                    &format!("the agent at {} has not answered for {seconds} s", path.display()),
                    None,
                );
                REFUSED
            }
            Self::Broken(text) => {
                complain(text, None);
                REFUSED
            }
        }
    }
}
