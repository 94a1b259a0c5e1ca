//! The control socket: what can be asked, and how it is answered. What changes something goes to the agent's
//! loop, one request at a time; what only looks is answered beside it, also while a policy is compiled.

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{
        Extension, Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::{HeaderMap, HeaderValue, Request, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use http_body_util::BodyExt as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::spawn_blocking,
    time::timeout,
};
use utoipa::{OpenApi, ToSchema};

use super::{
    Bundle, Desired,
    bundle::SetFile,
    busy::Busy,
    conditions::{Condition, Tag},
    connections::Peer,
    control::{View, content_is_lost},
    described::Conditions,
    history,
    loading::understand,
    looking::{self, Found, Turns},
    orders::{self, Desk, NotTaken, Order},
};
use crate::{
    api::{
        AgentAnswer, ApplyAnswer, ApplyRequest, Attachment, DiffAnswer, DoneAnswer, EditRequest,
        ErrorAnswer, Event, File, How, INSTANCE_HEADER, Kind, MAX_REQUEST_LEN, PolicyAnswer,
        PrefixesAnswer, Refusal, RemovedRule, RollbackRequest, RuleAnswer, SetAnswer,
    },
    dataplane::{self, Error as DataplaneError, Instance, Stats, Status},
    policy::diff,
};

/// Something that changes what is in force.
#[derive(Debug)]
pub enum Job {
    Apply(Bundle, How, Room, Reply<ApplyAnswer>),
    Edit(EditRequest, Room, Reply<ApplyAnswer>),
    Confirm(Reply<DoneAnswer>),
    Rollback(How, Reply<ApplyAnswer>),
    Detach(Reply<DoneAnswer>),
}

/// Where the answer goes.
pub type Reply<T> = oneshot::Sender<Outcome<T>>;

/// What became of an order.
#[derive(Debug)]
pub struct Outcome<T> {
    pub result: Result<T, Denied>,
    /// Of the policy that is in force now.
    pub tag: Option<Tag>,
}

/// Why an order was not carried out.
#[derive(Debug)]
pub enum Denied {
    /// Its condition does not hold.
    Unmet(Refusal),
    Refused(Refusal),
}

/// What the agent's loop tells those who only look.
#[derive(Debug)]
pub struct Shared {
    pub instance: Instance,
    started_at: u64,
    view: Mutex<(View, Vec<Event>)>,
    /// What long requests take, in MiB.
    room: Arc<Semaphore>,
}

impl Shared {
    pub fn new(instance: Instance) -> Self {
        Self {
            instance,
            started_at: history::now(),
            view: Mutex::default(),
            room: Arc::new(Semaphore::new(ROOM)),
        }
    }

    /// What has become of things.
    pub fn show(&self, view: View, events: Vec<Event>) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = (view, events);
    }

    fn view(&self) -> View {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Of the policy in force, as far as the agent's loop has told.
    fn tag(&self) -> Option<Tag> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).0.tag()
    }

    fn agent(&self) -> AgentAnswer {
        let (view, history) = self.view.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let state = match &view.desired {
            Some(_) if view.trial_ends.is_some() => "on trial",
            Some(_) if view.is_attached => "in force",
            Some(_) => "waiting",
            None if view.was_detached => "detached",
            None => "nothing",
        };
        AgentAnswer {
            process: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: state.to_owned(),
            started_at: self.started_at,
            trial_seconds_left: seconds_left(&view),
            waiting: view.waiting,
            not_kept: view.not_kept,
            problems: view.problems,
            history,
        }
    }
}

fn seconds_left(view: &View) -> Option<u64> {
    let left = view.trial_ends?.saturating_duration_since(Instant::now());
    // Rounded up: nothing is left only when the time is up.
    Some(left.as_millis().div_ceil(1000) as u64)
}

/// What the answers at a socket are made of.
#[derive(Debug, Clone)]
struct Context {
    shared: Arc<Shared>,
    desk: Desk,
    status: looking::Shared,
    stats: looking::Shared,
    policy: looking::Shared,
    /// Whose looks are nobody else's.
    turns: Arc<Turns>,
}

impl Context {
    /// Of a socket where these looks take these turns, and all others the last ones.
    fn new(shared: Arc<Shared>, desk: Desk, turns: [Arc<Turns>; 4]) -> Self {
        let [status, stats, policy, turns] = turns;
        let look = |turns, find: fn(&Shared) -> Result<Bytes, Refusal>| {
            let shared = Arc::clone(&shared);
            looking::Shared::new(turns, move || {
                // Before the look: a later one would be taken for that of an earlier policy.
                let tag = shared.tag();
                Found { body: find(&shared), tag }
            })
        };
        Self {
            status: look(status, find_status),
            stats: look(stats, find_stats),
            policy: look(policy, find_policy),
            shared,
            desk,
            turns,
        }
    }
}

/// What can be asked at the control socket.
pub fn control(shared: Arc<Shared>, desk: Desk) -> Router {
    let changing = Router::new()
        .route("/v1/policy", put(put_policy))
        .route("/v1/confirm", post(confirm))
        .route("/v1/rollback", post(rollback))
        .route("/v1/detach", post(detach))
        .route("/v1/edits", post(edits))
        // Nothing is changed, but reading a policy can take gigabytes.
        .route("/v1/diff", post(diff_policy));
    // An operator's question waits for no other kind of question.
    let turns = [Turns::new(1), Turns::new(1), Turns::new(1), Turns::new(2)];
    let context = Context::new(Arc::clone(&shared), desk, turns);
    answered(looking().merge(changing), &shared).with_state(context)
}

/// What can be asked at the socket for monitoring.
pub fn monitor(shared: Arc<Shared>) -> Router {
    // Orders are refused before they get there.
    let (desk, _) = orders::desk();
    let read_only = || async {
        let refusal = Refusal::refused("at this socket nothing can be changed");
        refuse_with(
            StatusCode::METHOD_NOT_ALLOWED,
            refusal.help("the agent's control socket is another one"),
        )
    };
    let changing = [
        ("/v1/confirm", post(read_only)),
        ("/v1/rollback", post(read_only)),
        ("/v1/detach", post(read_only)),
        ("/v1/edits", post(read_only)),
        ("/v1/diff", post(read_only)),
        ("/v1/policy", put(read_only)),
    ];
    let router = changing.into_iter().fold(looking(), |router, (path, it)| router.route(path, it));
    let turns = Turns::with_rests();
    let context = Context::new(Arc::clone(&shared), desk, [(); 4].map(|()| Arc::clone(&turns)));
    answered(router, &shared).with_state(context)
}

/// Whatever else is asked gets an answer of the same kind, and so does what is meant for another instance's agent.
fn answered(router: Router<Context>, shared: &Shared) -> Router<Context> {
    let instance = shared.instance.clone();
    let check = move |request: Request<Body>, next: Next| {
        let meant = request.headers().get(INSTANCE_HEADER);
        let is_other = meant.is_some_and(|meant| meant.as_bytes() != instance.name().as_bytes());
        let refusal = is_other.then(|| {
            Refusal::refused(format!("the agent here runs instance `{}`", instance.name()))
                .help("`--instance` and `--socket` have to mean the same agent")
        });
        async move {
            match refusal {
                Some(refusal) => refuse(refusal).into_response(),
                None => next.run(request).await,
            }
        }
    };
    router.fallback(unknown).method_not_allowed_fallback(wrong_method).layer(from_fn(check))
}

fn looking() -> Router<Context> {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/stats", get(stats))
        .route("/v1/policy", get(policy).head(policy_tag))
        .route("/v1/sets/{name}", get(set))
        .route("/v1/openapi.json", get(openapi))
}

/// The description of everything that can be asked.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "portsteer",
        description = "The agent's control socket: HTTP over a Unix socket, JSON both ways. Fields are only ever added. A request with the header `Portsteer-Instance` is refused (409) by another instance's agent. Every answer that tells of the policy in force names it by the header `ETag`, for `If-Match` of a later change; on trial it has another tag than once it is confirmed. What is told of the kernel was read after the request came; clients that ask for the same at the same time share one reading. A change whose client closes the connection before it is begun is not made; one that is begun is."
    ),
    servers((url = "http://localhost", description = "curl --unix-socket /run/portsteer/agent.sock")),
    paths(
        status, stats, policy, policy_tag, put_policy, set, diff_policy, confirm, rollback, detach, edits,
        openapi
    ),
    modifiers(&Conditions),
    components(schemas(
        AgentAnswer, ApplyAnswer, ApplyRequest, Attachment, DiffAnswer, DoneAnswer, EditRequest,
        ErrorAnswer, Event, File, How, Kind, PolicyAnswer, PrefixesAnswer, Refusal, RemovedRule,
        RollbackRequest, RuleAnswer, SetAnswer, StatusAnswer, Stats
    ))
)]
#[derive(Debug)]
pub struct Description;

/// What `GET /v1/status` tells: of what is pinned, nothing while nothing is attached.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatusAnswer {
    /// What is attached where.
    pub dataplane: Option<Status>,
    pub agent: AgentAnswer,
}

/// A refusal as it is answered.
pub(super) struct Refused(Box<(StatusCode, Refusal, Option<Tag>)>);

impl Refused {
    /// What is refused tells of the policy with this tag.
    fn tagged(mut self, tag: Option<Tag>) -> Self {
        self.0.2 = tag;
        self
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, error, tag) = *self.0;
        with_tag((status, Json(ErrorAnswer { error })).into_response(), tag.as_ref())
    }
}

impl IntoResponse for Found {
    fn into_response(self) -> Response {
        match self.body {
            Ok(body) => with_tag(json(body), self.tag.as_ref()),
            Err(refusal) => refuse(refusal).tagged(self.tag).into_response(),
        }
    }
}

fn json(body: Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// Names the policy that an answer tells of.
fn with_tag(mut answer: Response, tag: Option<&Tag>) -> Response {
    if let Some(tag) = tag.and_then(Tag::header) {
        answer.headers_mut().insert(header::ETAG, tag);
        // It names the policy, not the answer, which tells more than that: no cache is to compare them.
        answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    answer
}

/// The JSON of an answer, made where it keeps nobody waiting.
fn encode(answer: &impl Serialize) -> Result<Bytes, Refusal> {
    serde_json::to_vec(answer)
        .map(Bytes::from)
        .map_err(|error| Refusal::refused(format!("writing JSON: {error}")))
}

/// What an order's client is answered.
struct Ordered<T>(Outcome<T>);

impl<T: Serialize> IntoResponse for Ordered<T> {
    fn into_response(self) -> Response {
        let Outcome { result, tag } = self.0;
        match result {
            Ok(answer) => with_tag(Json(answer).into_response(), tag.as_ref()),
            Err(Denied::Refused(refusal)) => refuse(refusal).tagged(tag).into_response(),
            Err(Denied::Unmet(refusal)) => {
                refuse_with(StatusCode::PRECONDITION_FAILED, refusal).tagged(tag).into_response()
            }
        }
    }
}

fn refuse(refusal: Refusal) -> Refused {
    let status = match refusal.kind {
        Kind::Negative => StatusCode::NOT_FOUND,
        Kind::BadInput => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::Refused => StatusCode::CONFLICT,
    };
    refuse_with(status, refusal)
}

fn refuse_with(status: StatusCode, refusal: Refusal) -> Refused {
    Refused(Box::new((status, refusal, None)))
}

/// What is attached where, and what the agent knows of it
#[utoipa::path(get, path = "/v1/status", responses(
    (status = 200, body = StatusAnswer), (status = 409, body = ErrorAnswer)
))]
async fn status(State(context): State<Context>) -> Found {
    context.status.look().await
}

fn find_status(shared: &Shared) -> Result<Bytes, Refusal> {
    let read = match shared.view().reader {
        Some(reader) => reader.status(),
        None => dataplane::read_status(&shared.instance),
    };
    let dataplane = match read {
        Ok(status) => Some(status),
        Err(DataplaneError::NotAttached(_)) => None,
        Err(error) => return Err(super::Error::from(error).to_refusal()),
    };
    encode(&StatusAnswer { dataplane, agent: shared.agent() })
}

/// What was counted
#[utoipa::path(get, path = "/v1/stats", responses(
    (status = 200, body = Stats), (status = 503, body = ErrorAnswer),
    (status = 404, body = ErrorAnswer, description = "nothing is attached"),
    (status = 409, body = ErrorAnswer)
))]
async fn stats(State(context): State<Context>) -> Found {
    context.stats.look().await
}

fn find_stats(shared: &Shared) -> Result<Bytes, Refusal> {
    let stats = match shared.view().reader {
        Some(reader) => reader.stats(),
        None => dataplane::read_stats(&shared.instance),
    };
    encode(&stats.map_err(|error| super::Error::from(error).to_refusal())?)
}

/// The policy in force
#[utoipa::path(get, path = "/v1/policy", responses(
    (status = 200, body = PolicyAnswer),
    (status = 404, body = ErrorAnswer, description = "nothing is in force"),
    (status = 503, body = ErrorAnswer, description = "too many long answers at the same time")
))]
async fn policy(State(context): State<Context>) -> Found {
    context.policy.look().await
}

fn find_policy(shared: &Shared) -> Result<Bytes, Refusal> {
    let view = shared.view();
    let trial_seconds_left = seconds_left(&view);
    let desired = view.desired.ok_or_else(nothing_in_force)?;
    let policy = desired.policy;
    let rules = policy.rules.iter().enumerate().map(|(index, rule)| RuleAnswer {
        number: index + 1,
        name: rule.name.clone(),
        matches: policy.matches(rule),
        action: policy.does(rule),
    });
    let sets = policy.sets.iter().map(|set| SetAnswer {
        name: set.name.clone(),
        file: set.file.clone(),
        prefixes: set.prefixes.len(),
    });
    encode(&PolicyAnswer {
        generation: desired.generation,
        saves_to: desired.record.is_path_trusted.then(|| desired.record.path.clone()),
        path: desired.record.path,
        policy: desired.text.to_string(),
        trial_seconds_left,
        rules: rules.collect(),
        sets: sets.collect(),
    })
}

/// The tag of the policy in force alone, which takes no look at it
#[utoipa::path(head, path = "/v1/policy", responses(
    (status = 200, description = "the header `ETag` names the policy"),
    (status = 404, description = "nothing is in force")
))]
async fn policy_tag(State(context): State<Context>) -> Response {
    match context.shared.tag() {
        Some(tag) => with_tag(StatusCode::OK.into_response(), Some(&tag)),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn nothing_in_force() -> Refusal {
    Refusal::negative("nothing is in force").help("`portsteer apply FILE` puts a policy in force")
}

/// All prefixes of a set of the policy in force
#[utoipa::path(get, path = "/v1/sets/{name}", params(("name" = String, Path)), responses(
    (status = 200, body = PrefixesAnswer), (status = 404, body = ErrorAnswer),
    (status = 409, body = ErrorAnswer, description = "the content of its file is lost"),
    (status = 422, body = ErrorAnswer), (status = 503, body = ErrorAnswer)
))]
async fn set(
    State(context): State<Context>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Found, Refused> {
    let Path(name) = name.map_err(|rejection| {
        refuse(Refusal::bad_input(format!("the set's name is wrong: {}", rejection.body_text())))
    })?;
    let shared = Arc::clone(&context.shared);
    Ok(context.turns.look(move || found_in(&shared.view(), |it| find_set(it, name))).await)
}

/// What there is to say of the policy in force, as the loop told of it.
fn found_in(view: &View, find: impl FnOnce(&Desired) -> Result<Bytes, Refusal>) -> Found {
    let body = view.desired.as_ref().ok_or_else(nothing_in_force).and_then(find);
    Found { body, tag: view.tag() }
}

fn find_set(desired: &Desired, name: String) -> Result<Bytes, Refusal> {
    let set = desired
        .policy
        .sets
        .iter()
        .find(|set| set.name == name)
        .ok_or_else(|| Refusal::negative(format!("the policy in force has no set `{name}`")))?;
    if set.file.is_some() && !desired.is_whole {
        return Err(content_is_lost());
    }
    let prefixes =
        set.prefixes.iter().map(|prefix| match prefix.prefix_len() == prefix.max_prefix_len() {
            true => prefix.addr().to_string(),
            false => prefix.to_string(),
        });
    encode(&PrefixesAnswer { name, prefixes: prefixes.collect() })
}

/// How the policy in force differs from another. The body is as that of `PUT /v1/policy`
#[utoipa::path(post, path = "/v1/diff",
    params(("path" = Option<String>, Query, description = "the policy file's path, for what is wrong with it")),
    request_body(content((ApplyRequest = "application/json"), (String = "application/toml"))),
    responses(
        (status = 200, body = DiffAnswer),
        (status = 404, body = ErrorAnswer, description = "nothing is in force"),
        (status = 409, body = ErrorAnswer, description = "the content of set files is lost"),
        (status = 408, body = ErrorAnswer), (status = 413, body = ErrorAnswer),
        (status = 422, body = ErrorAnswer), (status = 503, body = ErrorAnswer)
    )
)]
async fn diff_policy(
    State(context): State<Context>,
    Extension(busy): Extension<Busy>,
    parameters: Sent<Parameters>,
    request: Request<Body>,
) -> Result<Found, Refused> {
    let (bundle, _, room) = read_policy(&context, &busy, parameters, request).await?;
    let view = context.shared.view();
    let compare = move || {
        // For as long as the request is there, also where its client is gone.
        let _room = room;
        found_in(&view, |desired| find_difference(desired, bundle))
    };
    Ok(context.turns.look(compare).await)
}

fn find_difference(desired: &Desired, bundle: Bundle) -> Result<Bytes, Refusal> {
    if !desired.is_whole {
        return Err(content_is_lost());
    }
    let loaded = understand(bundle).map_err(|error| error.to_refusal())?;
    let difference = diff::diff(&desired.policy, &loaded.policy);
    let changes = serde_json::to_value(&difference)
        .map_err(|error| Refusal::refused(format!("writing JSON: {error}")))?;
    encode(&DiffAnswer { same: difference.is_empty(), text: difference.to_string(), changes })
}

/// Parameters, as far as they can be understood.
type Sent<T> = Result<Query<T>, QueryRejection>;

/// What can stand behind the `?` where the body is a policy's text alone.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    path: Option<String>,
    confirm_seconds: Option<u64>,
    #[serde(default)]
    force: bool,
    ssh_connection: Option<String>,
}

/// Puts a policy in force. The body is JSON, or the policy file's text alone with the rest as parameters
#[utoipa::path(put, path = "/v1/policy",
    params(
        ("path" = Option<String>, Query, description = "the policy file's path, for listings"),
        ("confirm_seconds" = Option<u64>, Query, description = "put it on trial for so long"),
        ("force" = Option<bool>, Query, description = "even if it cuts the operator's own connection"),
        ("ssh_connection" = Option<String>, Query, description = "the operator's own connection")
    ),
    request_body(content((ApplyRequest = "application/json"), (String = "application/toml"))),
    responses(
        (status = 200, body = ApplyAnswer),
        (status = 409, body = ErrorAnswer, description = "the kernel or the agent refuses"),
        (status = 408, body = ErrorAnswer, description = "the request did not come in time"),
        (status = 413, body = ErrorAnswer, description = "the request is too long"),
        (status = 422, body = ErrorAnswer, description = "the request or the policy is wrong"),
        (status = 503, body = ErrorAnswer, description = "too many long requests at the same time")
    )
)]
async fn put_policy(
    State(context): State<Context>,
    Extension(busy): Extension<Busy>,
    Extension(peer): Extension<Peer>,
    parameters: Sent<Parameters>,
    request: Request<Body>,
) -> Result<Ordered<ApplyAnswer>, Refused> {
    let condition = condition(request.headers())?;
    let (mut bundle, how, room) = read_policy(&context, &busy, parameters, request).await?;
    bundle.is_path_trusted = peer.is_root && std::path::Path::new(&bundle.path).is_absolute();
    check_how(&how)?;
    order(&context, condition, |reply| Job::Apply(bundle, how, room, reply)).await
}

/// Keeps the policy on trial
#[utoipa::path(post, path = "/v1/confirm", responses(
    (status = 200, body = DoneAnswer),
    (status = 404, body = ErrorAnswer, description = "nothing is on trial"),
    (status = 409, body = ErrorAnswer)
))]
async fn confirm(
    State(context): State<Context>,
    Extension(busy): Extension<Busy>,
    headers: HeaderMap,
) -> Result<Ordered<DoneAnswer>, Refused> {
    busy.begin();
    order(&context, condition(&headers)?, Job::Confirm).await
}

/// Ends a trial, or goes back to the policy that was accepted before
#[utoipa::path(post, path = "/v1/rollback", request_body(content((RollbackRequest = "application/json"))), responses(
    (status = 200, body = ApplyAnswer),
    (status = 404, body = ErrorAnswer, description = "there is no policy to go back to"),
    (status = 408, body = ErrorAnswer), (status = 409, body = ErrorAnswer),
    (status = 413, body = ErrorAnswer), (status = 422, body = ErrorAnswer),
    (status = 503, body = ErrorAnswer)
))]
async fn rollback(
    State(context): State<Context>,
    Extension(busy): Extension<Busy>,
    request: Request<Body>,
) -> Result<Ordered<ApplyAnswer>, Refused> {
    let condition = condition(request.headers())?;
    let (body, _room) = read_body(&context, &busy, request).await?;
    let RollbackRequest { how } = match body.is_empty() {
        true => RollbackRequest::default(),
        false => from_json(body).await?,
    };
    check_how(&how)?;
    order(&context, condition, |reply| Job::Rollback(how, reply)).await
}

/// Takes the dataplane off all interfaces, until the next policy is put in force
#[utoipa::path(post, path = "/v1/detach", responses(
    (status = 200, body = DoneAnswer),
    (status = 404, body = ErrorAnswer, description = "nothing is attached"),
    (status = 409, body = ErrorAnswer)
))]
async fn detach(
    State(context): State<Context>,
    Extension(busy): Extension<Busy>,
    headers: HeaderMap,
) -> Result<Ordered<DoneAnswer>, Refused> {
    busy.begin();
    order(&context, condition(&headers)?, Job::Detach).await
}

/// Edits the policy in force
#[utoipa::path(post, path = "/v1/edits", request_body = EditRequest, responses(
    (status = 200, body = ApplyAnswer),
    (status = 404, body = ErrorAnswer, description = "nothing is in force"),
    (status = 408, body = ErrorAnswer), (status = 409, body = ErrorAnswer),
    (status = 413, body = ErrorAnswer), (status = 422, body = ErrorAnswer),
    (status = 503, body = ErrorAnswer)
))]
async fn edits(
    State(context): State<Context>,
    Extension(busy): Extension<Busy>,
    request: Request<Body>,
) -> Result<Ordered<ApplyAnswer>, Refused> {
    let condition = condition(request.headers())?;
    let (body, room) = read_body(&context, &busy, request).await?;
    let request: EditRequest = from_json(body).await?;
    if request.edits.is_empty() {
        return Err(refuse(Refusal::bad_input("there are no edits")));
    }
    check_how(&request.how)?;
    order(&context, condition, |reply| Job::Edit(request, room, reply)).await
}

/// This description
#[utoipa::path(get, path = "/v1/openapi.json", responses((status = 200, body = Object)))]
async fn openapi() -> Response {
    static DESCRIPTION: LazyLock<Result<Bytes, Refusal>> =
        LazyLock::new(|| encode(&Description::openapi()));
    match &*DESCRIPTION {
        Ok(description) => json(description.clone()),
        Err(refusal) => refuse(refusal.clone()).into_response(),
    }
}

async fn unknown(request: Request<Body>) -> Refused {
    let refusal = Refusal::negative(format!("there is nothing at {}", request.uri().path()))
        .help("GET /v1/openapi.json lists what there is");
    refuse(refusal)
}

async fn wrong_method(request: Request<Body>) -> Refused {
    let (method, path) = (request.method(), request.uri().path());
    let refusal = Refusal::bad_input(format!("{method} makes no sense at {path}"))
        .help("GET /v1/openapi.json lists what does");
    refuse_with(StatusCode::METHOD_NOT_ALLOWED, refusal)
}

/// The longest trial, in seconds.
const LONGEST_TRIAL: u64 = 7 * 86_400;

fn check_how(how: &How) -> Result<(), Refused> {
    match how.confirm_seconds {
        Some(0) => Err(refuse(Refusal::bad_input("a trial of no time is none"))),
        Some(seconds) if seconds > LONGEST_TRIAL => Err(refuse(Refusal::bad_input(format!(
            "a trial lasts {LONGEST_TRIAL} seconds at most"
        )))),
        _ => Ok(()),
    }
}

fn condition(headers: &HeaderMap) -> Result<Condition, Refused> {
    Condition::of(headers).map_err(refuse)
}

/// Has the agent's loop do something, for as long as there is a client that waits for it.
async fn order<T>(
    context: &Context,
    condition: Condition,
    job: impl FnOnce(Reply<T>) -> Job,
) -> Result<Ordered<T>, Refused> {
    let (reply, answer) = oneshot::channel();
    let ending = || refuse(Refusal::refused("the agent is ending"));
    let put = context.desk.put(Order { condition, job: job(reply) });
    let _place = put.map_err(|not_taken| match not_taken {
        NotTaken::TooMany => {
            refuse(Refusal::refused("too many requests wait already").help("try again later"))
        }
        NotTaken::Ending => ending(),
    })?;
    answer.await.map(Ordered).map_err(|_| ending())
}

/// Bodies up to this length need no room to be found for them.
const SMALL_BODY: usize = 64 << 10;

/// How long a client may take to send its request.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// How much of long requests is kept at the same time, in MiB: from when it comes until it is answered.
const ROOM: usize = 2 * (MAX_REQUEST_LEN >> 20);

/// What a long request takes of that.
pub type Room = Option<OwnedSemaphorePermit>;

async fn read_body(
    context: &Context,
    busy: &Busy,
    request: Request<Body>,
) -> Result<(Vec<u8>, Room), Refused> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_REQUEST_LEN) {
        return Err(too_long());
    }
    let read = read_frames(&context.shared.room, request.into_body());
    let body = timeout(BODY_PATIENCE, read).await.unwrap_or_else(|_| {
        let refusal = Refusal::bad_input("the request did not come in time");
        Err(refuse_with(StatusCode::REQUEST_TIMEOUT, refusal))
    })?;
    busy.begin();
    Ok(body)
}

async fn read_frames(shared: &Arc<Semaphore>, mut body: Body) -> Result<(Vec<u8>, Room), Refused> {
    let mut content = Vec::new();
    let mut room: Room = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            refuse(Refusal::bad_input(format!("the request cannot be read: {error}")))
        })?;
        // Trailers say nothing here.
        let Ok(data) = frame.into_data() else { continue };
        let len = content.len() + data.len();
        if len > MAX_REQUEST_LEN {
            return Err(too_long());
        }
        let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let needed = if len > SMALL_BODY { len.div_ceil(1 << 20) } else { 0 };
        if needed > held {
            // Whoever waited would keep what has come of it meanwhile.
            let more = u32::try_from(needed - held).unwrap_or(u32::MAX);
            let more =
                Arc::clone(shared).try_acquire_many_owned(more).map_err(|_| no_room("requests"))?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
        }
        content.extend_from_slice(&data);
    }
    Ok((content, room))
}

fn too_long() -> Refused {
    let message = format!("the request is longer than {} MiB", MAX_REQUEST_LEN >> 20);
    refuse_with(StatusCode::PAYLOAD_TOO_LARGE, Refusal::bad_input(message))
}

/// There are too many long requests, or answers.
pub(super) fn no_room(what: &str) -> Refused {
    let refusal = Refusal::refused(format!("too many long {what} are there at the same time"));
    refuse_with(StatusCode::SERVICE_UNAVAILABLE, refusal.help("try again later"))
}

async fn from_json<T: DeserializeOwned + Send + 'static>(body: Vec<u8>) -> Result<T, Refused> {
    let is_short = body.len() <= SMALL_BODY;
    let parse = move || serde_json::from_slice(&body);
    // Others are answered while a long one is read.
    let parsed = match is_short {
        true => parse(),
        false => spawn_blocking(parse)
            .await
            .map_err(|_| refuse(Refusal::refused("the agent could not read the request")))?,
    };
    parsed.map_err(|error| refuse(Refusal::bad_input(format!("the request is wrong: {error}"))))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    kind.is_some_and(|kind| kind.split(';').next().unwrap_or("").trim() == "application/json")
}

/// A policy that came as JSON, or as its text alone.
async fn read_policy(
    context: &Context,
    busy: &Busy,
    parameters: Sent<Parameters>,
    request: Request<Body>,
) -> Result<(Bundle, How, Room), Refused> {
    let Query(parameters) = parameters.map_err(|rejection| {
        refuse(Refusal::bad_input(format!("the parameters are wrong: {}", rejection.body_text())))
    })?;
    let is_json = is_json(request.headers());
    if is_json && parameters != Parameters::default() {
        let refusal = Refusal::bad_input("parameters stand beside a policy's text alone");
        return Err(refuse(refusal.help("in JSON they are fields of the request")));
    }
    let (body, room) = read_body(context, busy, request).await?;
    if !is_json {
        if body.starts_with(b"{") {
            let refusal = Refusal::bad_input("this is no policy file's text");
            return Err(refuse(refusal.help("JSON has `Content-Type: application/json`")));
        }
        let text = String::from_utf8(body).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            refuse(Refusal::bad_input(format!("the policy is not UTF-8 from byte {at} on")))
        })?;
        let path = checked_path(parameters.path)?;
        let how = How {
            confirm_seconds: parameters.confirm_seconds,
            force: parameters.force,
            ssh_connection: parameters.ssh_connection,
        };
        return Ok((Bundle::of_text(path, text), how, room));
    }
    let request: ApplyRequest = from_json(body).await?;
    let files = request
        .files
        .into_iter()
        .map(|file| SetFile { name: file.name, content: file.content.into_bytes() });
    let bundle = Bundle {
        path: checked_path(request.path)?,
        is_path_trusted: false,
        text: request.policy,
        files: files.collect(),
    };
    Ok((bundle, request.how, room))
}

/// The longest path that a client may give its policy, in bytes: the kernel's `PATH_MAX`.
const MAX_PATH_LEN: usize = 4096;

/// What the policy is called in listings and logs.
fn checked_path(path: Option<String>) -> Result<String, Refused> {
    let Some(path) = path else { return Ok("(control socket)".to_owned()) };
    let why = if path.chars().any(char::is_control) {
        "has control characters"
    } else if path.len() > MAX_PATH_LEN {
        "is longer than 4096 bytes"
    } else {
        return Ok(path);
    };
    let refusal = Refusal::bad_input(format!("the policy's path {why}"));
    Err(refuse(
        refusal.help("it is for listings and logs: leave it out, or give one of plain text"),
    ))
}
