//! Edits at the prompt: `rule`, `set` and `port`. They take effect at once; with `--save` the policy file gets them
//! too, with its comments and layout kept.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand, ValueEnum};

use super::{
    BAD_INPUT, REFUSED,
    client::{AgentArgument, Client, Failure, Meant},
    complain, print,
    running::{HowArguments, Warnings, applied, tell},
    show_diagnostics,
    table::{Align, table},
};
use crate::{
    agent::{self, PolicyFiles},
    api::{ApplyAnswer, EditRequest, PolicyAnswer, RuleAnswer},
    policy::{
        self,
        edit::{
            Edit, Edited, NewRule, Place, RuleAction, RuleRef, edit_set_file, edit_text,
            parse_prefix,
        },
    },
};

/// What all edits take.
#[derive(Debug, Args)]
pub(super) struct EditArguments {
    /// Write the edit into the policy file as well, with its comments and layout kept: into that which is in force,
    /// if root or the agent itself has named it, or into this one.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    save: Option<Option<PathBuf>>,
    #[command(flatten)]
    how: HowArguments,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    agent: AgentArgument,
}

/// `portsteer rule`.
#[derive(Debug, Subcommand)]
pub(super) enum RuleCommand {
    /// Add a rule, at the end unless told otherwise.
    Add {
        /// What happens to a packet that matches: pass, drop, or steer=TARGET.
        #[arg(value_name = "ACTION", value_parser = action)]
        action: RuleAction,
        #[command(flatten)]
        fields: Box<RuleFields>,
        #[command(flatten)]
        place: PlaceArguments,
        #[command(flatten)]
        edit: Box<EditArguments>,
    },
    /// Remove a rule.
    Remove {
        /// Its name, or its number as `rule list` shows it.
        rule: RuleRef,
        #[command(flatten)]
        edit: Box<EditArguments>,
    },
    /// Move a rule: earlier rules come first.
    Move {
        /// Its name, or its number as `rule list` shows it.
        rule: RuleRef,
        #[command(flatten)]
        place: PlaceArguments,
        #[command(flatten)]
        edit: Box<EditArguments>,
    },
    /// List the rules in force, with their numbers.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        agent: AgentArgument,
    },
}

/// What a rule matches: every packet if nothing is said. Several values are separated by commas.
#[derive(Debug, Args)]
pub(super) struct RuleFields {
    /// The rule's name, which its counter belongs to.
    #[arg(long)]
    name: Option<String>,
    /// Protocols: tcp, udp, icmp, ... or numbers.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    protocol: Vec<String>,
    /// Source addresses, prefixes and @sets, with ! before what is not meant.
    #[arg(long, value_delimiter = ',', value_name = "LIST", allow_hyphen_values = true)]
    src: Vec<String>,
    /// Source ports: numbers, ranges such as 8000-8099, service names.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    src_port: Vec<String>,
    /// Destination addresses, as sources.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    dst: Vec<String>,
    /// Destination ports, as source ports.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    dst_port: Vec<String>,
    /// ICMP types: numbers, names, ranges, types with codes such as 3/4.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    icmp_type: Vec<String>,
    /// VLAN ids, ranges of them, or untagged.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    vlan: Vec<String>,
    /// Interfaces that packets come in by.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    interface: Vec<String>,
}

/// Where a rule goes.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct PlaceArguments {
    /// Before all others.
    #[arg(long)]
    first: bool,
    /// After all others.
    #[arg(long)]
    last: bool,
    /// Right before this rule.
    #[arg(long, value_name = "RULE")]
    before: Option<RuleRef>,
    /// Right after this rule.
    #[arg(long, value_name = "RULE")]
    after: Option<RuleRef>,
}

impl PlaceArguments {
    fn place(self) -> Option<Place> {
        match self {
            Self { first: true, .. } => Some(Place::First),
            Self { last: true, .. } => Some(Place::Last),
            Self { before: Some(rule), .. } => Some(Place::Before(rule)),
            Self { after: Some(rule), .. } => Some(Place::After(rule)),
            _ => None,
        }
    }
}

/// `portsteer set`.
#[derive(Debug, Subcommand)]
pub(super) enum SetCommand {
    /// Put addresses into a set. Those that it has are not repeated.
    Add {
        #[command(flatten)]
        what: SetArguments,
    },
    /// Take addresses out of a set.
    Remove {
        #[command(flatten)]
        what: SetArguments,
    },
}

/// A set, and addresses.
#[derive(Debug, Args)]
pub(super) struct SetArguments {
    /// The set's name.
    name: String,
    /// Addresses and prefixes; `-` reads them from standard input, one a line, `#` before comments.
    #[arg(value_name = "PREFIX", required = true)]
    prefixes: Vec<String>,
    #[command(flatten)]
    edit: Box<EditArguments>,
}

/// `portsteer port`.
#[derive(Debug, Args)]
pub(super) struct PortOptions {
    /// What happens to packets to these ports.
    action: PortAction,
    /// Ports, ranges and service names, each with a protocol behind a slash if it is not TCP: 443 8000-8099
    /// domain/udp. After `steer` the last one is the target.
    #[arg(value_name = "PORT", required = true)]
    ports: Vec<String>,
    /// From these addresses, prefixes and @sets only.
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    src: Vec<String>,
    /// The rule's name.
    #[arg(long)]
    name: Option<String>,
    /// Behind the other rules, not before them.
    #[arg(long)]
    last: bool,
    #[command(flatten)]
    edit: Box<EditArguments>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PortAction {
    Pass,
    Drop,
    Steer,
}

fn action(text: &str) -> Result<RuleAction, String> {
    let words = text.replacen('=', " ", 1);
    words.parse().map_err(|error: policy::edit::EditError| {
        error.to_string().replace("`steer NAME`", "`steer=TARGET`")
    })
}

pub(super) fn rule(command: RuleCommand) -> u8 {
    match command {
        RuleCommand::Add { action, fields, place, edit } => {
            let RuleFields {
                name,
                protocol,
                src,
                src_port,
                dst,
                dst_port,
                icmp_type,
                vlan,
                interface,
            } = *fields;
            let rule = NewRule {
                name,
                protocol,
                src,
                src_port,
                dst,
                dst_port,
                icmp_type,
                vlan,
                interface,
                action,
            };
            let place = place.place().unwrap_or_default();
            make(vec![Edit::AddRule { rule: Box::new(rule), place }], &edit)
        }
        RuleCommand::Remove { rule, edit } => make(vec![Edit::RemoveRule { rule }], &edit),
        RuleCommand::Move { rule, place, edit } => match place.place() {
            Some(place) => make(vec![Edit::MoveRule { rule, place }], &edit),
            None => {
                complain("where to?", Some("--first, --last, --before RULE or --after RULE"));
                BAD_INPUT
            }
        },
        RuleCommand::List { json, agent } => {
            let answer = Client::new(&agent).get::<PolicyAnswer>("/v1/policy");
            tell(answer.map(|answer| answer.rules), json, |rules| {
                let columns = [
                    ("RULE", Align::Right),
                    ("NAME", Align::Left),
                    ("MATCH", Align::Left),
                    ("ACTION", Align::Left),
                ];
                let rows = rules.iter().map(|rule| {
                    let name = rule.name.clone().unwrap_or_else(|| "-".to_owned());
                    vec![
                        format!("#{}", rule.number),
                        name,
                        rule.matches.clone(),
                        rule.action.clone(),
                    ]
                });
                table(&columns, &rows.collect::<Vec<_>>())
            })
        }
    }
}

pub(super) fn set(command: SetCommand) -> u8 {
    let (adds, what) = match command {
        SetCommand::Add { what } => (true, what),
        SetCommand::Remove { what } => (false, what),
    };
    let prefixes = match read_prefixes(&what.prefixes) {
        Ok(prefixes) => prefixes,
        Err(message) => {
            complain(&message, None);
            return BAD_INPUT;
        }
    };
    let set = what.name;
    let edit = match adds {
        true => Edit::AddPrefixes { set, prefixes },
        false => Edit::RemovePrefixes { set, prefixes },
    };
    make(vec![edit], &what.edit)
}

fn read_prefixes(texts: &[String]) -> Result<Vec<ipnet::IpNet>, String> {
    let mut prefixes = Vec::new();
    for text in texts {
        if text != "-" {
            prefixes.push(parse_prefix(text).map_err(|error| error.to_string())?);
            continue;
        }
        for (number, line) in io::stdin().lines().enumerate() {
            let line = line.map_err(|error| format!("standard input: {error}"))?;
            let text = line.split('#').next().unwrap_or("").trim();
            if !text.is_empty() {
                let prefix = parse_prefix(text);
                prefixes
                    .push(prefix.map_err(|error| {
                        format!("standard input, line {}: {error}", number + 1)
                    })?);
            }
        }
    }
    Ok(prefixes)
}

pub(super) fn port(options: PortOptions) -> u8 {
    let PortOptions { action, mut ports, src, name, last, edit } = options;
    let action = match action {
        PortAction::Pass => RuleAction::Pass,
        PortAction::Drop => RuleAction::Drop,
        PortAction::Steer => {
            let target = ports.pop().unwrap_or_default();
            if ports.is_empty() {
                let help = format!("portsteer port steer {target} TARGET");
                complain("the target is missing", Some(&help));
                return BAD_INPUT;
            }
            RuleAction::Steer(target)
        }
    };
    if let Some(list) = ports.iter().find(|port| port.contains(',')) {
        complain(&format!("`{list}` is no port: separate ports by spaces"), None);
        return BAD_INPUT;
    }
    // A rule for each protocol, in the order in which they are named.
    let mut by_protocol: Vec<(String, Vec<String>)> = Vec::new();
    for port in &ports {
        let (port, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
        match by_protocol.iter_mut().find(|(known, _)| known == protocol) {
            Some((_, ports)) => ports.push(port.to_owned()),
            None => by_protocol.push((protocol.to_owned(), vec![port.to_owned()])),
        }
    }
    let several = by_protocol.len() > 1;
    let rules = by_protocol.into_iter().map(|(protocol, dst_port)| NewRule {
        name: name.as_ref().map(|name| match several {
            true => format!("{name}-{protocol}"),
            false => name.clone(),
        }),
        protocol: vec![protocol],
        src: src.clone(),
        dst_port,
        ..NewRule::any(action.clone())
    });
    let mut rules: Vec<NewRule> = rules.collect();
    let place = if last { Place::Last } else { Place::First };
    if !last {
        // The last one that is put first is first.
        rules.reverse();
    }
    let edits =
        rules.into_iter().map(|rule| Edit::AddRule { rule: Box::new(rule), place: place.clone() });
    make(edits.collect(), &edit)
}

/// How often an edit that is saved is prepared anew because another change came between.
const ATTEMPTS: usize = 8;

/// Has the agent make edits, and saves them if that is asked for.
fn make(mut edits: Vec<Edit>, arguments: &EditArguments) -> u8 {
    let client = Client::new(&arguments.agent);
    let how = arguments.how.how();
    if arguments.save.is_some() && how.confirm_seconds.is_some() {
        let help = "once it is confirmed, `portsteer show > FILE` writes what is in force, comments included";
        complain("a policy on trial is not for a file yet", Some(help));
        return BAD_INPUT;
    }
    // Of another policy, these would be other rules.
    let has_numbers =
        edits.iter_mut().flat_map(references).any(|rule| matches!(rule, RuleRef::Number(_)));
    let mut attempts = if has_numbers { 1 } else { ATTEMPTS };
    loop {
        attempts -= 1;
        // Written down first, so that nothing takes effect that the file cannot have.
        let prepared = match &arguments.save {
            None => None,
            Some(file) => match prepare(&client, &mut edits, file.as_deref(), has_numbers) {
                Ok(prepared) => Some(prepared),
                Err(code) => return code,
            },
        };
        let (saving, meant) = match prepared {
            Some((saving, meant)) => (Some(saving), meant),
            None => (None, Meant::Any),
        };
        let request = EditRequest { edits, how: how.clone() };
        let answer = client.post_meant::<ApplyAnswer>("/v1/edits", &request, &meant);
        edits = request.edits;
        if attempts > 0 && matches!(answer, Err(Failure::Unmet(_))) {
            continue;
        }
        let help = format!(
            "`portsteer rule list{}` shows the rules in force with their numbers",
            arguments.agent.again()
        );
        let answer = answer.map_err(|failure| failure.for_another("nothing is edited", &help));
        let code = tell(answer, arguments.json, |answer| {
            applied(answer, Warnings::AreNew, &arguments.agent)
        });
        return match saving {
            Some(saving) if code == 0 => saving.finish(arguments.json),
            _ => code,
        };
    }
}

/// The file that the policy in force came from, if root or the agent itself has said so.
fn saves_to(policy: &PolicyAnswer) -> Result<PathBuf, u8> {
    if let Some(file) = &policy.saves_to {
        return Ok(PathBuf::from(file));
    }
    let message = format!(
        "which file to save to is not known: only a client has said that the policy in force came from {}",
        policy.path
    );
    complain(&message, Some("--save=FILE names it"));
    Err(BAD_INPUT)
}

/// Makes edits in a file, or in that of the policy in force, as they are to be written once they have taken effect.
/// They are meant for the policy in force by whose rules they were compared with the file: where they name rules by
/// numbers, for the one when the command began.
fn prepare(
    client: &Client,
    edits: &mut [Edit],
    file: Option<&Path>,
    has_numbers: bool,
) -> Result<(Saving, Meant), u8> {
    let in_force =
        || client.get_named::<PolicyAnswer>("/v1/policy").map_err(|failure| failure.show());
    loop {
        let (mut policy, mut meant) = in_force()?;
        let path = match file {
            Some(file) => file.to_owned(),
            None => saves_to(&policy)?,
        };
        let lock = lock(&path)?;
        // Another command may have saved its edit since, which this one waited for.
        if !has_numbers {
            (policy, meant) = in_force()?;
            // And another policy may have come, whose file is another one.
            if file.is_none() && saves_to(&policy)? != path {
                continue;
            }
        }
        edits.iter_mut().for_each(|edit| name_rules(edit, &policy.rules));
        return Ok((Saving::prepare(&path, edits, &policy.rules, lock)?, meant));
    }
}

/// Keeps others that save to the same directory waiting, so that none writes over what another has written.
fn lock(file: &Path) -> Result<fs::File, u8> {
    let open = || {
        // Where a link leads, as that is what is replaced.
        let path = fs::canonicalize(file)?;
        let directory = fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
        directory.lock()?;
        Ok(directory)
    };
    open().map_err(|error: io::Error| {
        let message = format!("{} cannot be saved to: {error}", file.display());
        complain(&message, Some("--save=FILE names another one"));
        BAD_INPUT
    })
}

/// The rules that an edit refers to.
fn references(edit: &mut Edit) -> impl Iterator<Item = &mut RuleRef> {
    let (rule, place) = match edit {
        Edit::AddRule { place, .. } => (None, Some(place)),
        Edit::RemoveRule { rule } => (Some(rule), None),
        Edit::MoveRule { rule, place } => (Some(rule), Some(place)),
        Edit::AddPrefixes { .. } | Edit::RemovePrefixes { .. } => (None, None),
    };
    let beside = place.and_then(|place| match place {
        Place::Before(rule) | Place::After(rule) => Some(rule),
        Place::First | Place::Last => None,
    });
    rule.into_iter().chain(beside)
}

/// Calls rules by their names: numbers are those of the policy in force, which the file may number otherwise.
fn name_rules(edit: &mut Edit, in_force: &[RuleAnswer]) {
    for rule in references(edit) {
        if let RuleRef::Number(number) = rule
            && let Some(name) = in_force.get(*number - 1).and_then(|rule| rule.name.clone())
        {
            *rule = RuleRef::Name(name);
        }
    }
}

/// Files as they are to be.
struct Saving {
    files: Vec<Rewritten>,
    /// Until all is written.
    _lock: fs::File,
}

struct Rewritten {
    path: PathBuf,
    before: Vec<u8>,
    content: Vec<u8>,
}

impl Rewritten {
    fn new(path: &Path, before: Vec<u8>) -> Self {
        Self { path: path.to_owned(), content: before.clone(), before }
    }
}

impl Saving {
    fn prepare(
        path: &Path,
        edits: &[Edit],
        in_force: &[RuleAnswer],
        lock: fs::File,
    ) -> Result<Self, u8> {
        let bad = |message: String, help: Option<&str>| {
            complain(&message, help);
            BAD_INPUT
        };
        let help = "--save=FILE names another one";
        let read = |path: &Path| {
            agent::read_file(path).map_err(|error| {
                let message = format!("{} cannot be saved to: {error}", path.display());
                bad(message, Some(help))
            })
        };
        let mut policy = Rewritten::new(path, read(path)?);
        let mut text = String::from_utf8(policy.before.clone())
            .map_err(|_| bad(format!("{}: it is not UTF-8", path.display()), Some(help)))?;
        check_numbers(path, &text, edits, in_force)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut files: Vec<Rewritten> = Vec::new();
        for edit in edits {
            let failed = |error: policy::edit::EditError| {
                bad(format!("{} cannot be saved to: {error}", path.display()), None)
            };
            match edit_text(&text, edit).map_err(failed)? {
                Edited::Text(edited) => text = edited,
                Edited::SetFile(name) => {
                    let file = directory.join(name);
                    let known = files.iter().position(|known| known.path == file);
                    let index = match known {
                        Some(index) => index,
                        None => {
                            files.push(Rewritten::new(&file, read(&file)?));
                            files.len() - 1
                        }
                    };
                    let content = &mut files[index].content;
                    *content = edit_set_file(content, edit).map_err(failed)?;
                }
            }
        }
        let mut set_files = |name: &str| {
            let file = directory.join(name);
            match files.iter().find(|known| known.path == file) {
                Some(known) => Ok(known.content.clone()),
                None => policy::file::SetFiles::read(&mut PolicyFiles::beside(path), name),
            }
        };
        if let Err(diagnostics) =
            policy::file::parse_with(&text, &agent::services(), &mut set_files)
        {
            show_diagnostics(path, &text, &diagnostics);
            return Err(BAD_INPUT);
        }
        policy.content = text.into_bytes();
        files.push(policy);
        Ok(Self { files, _lock: lock })
    }

    fn finish(self, json: bool) -> u8 {
        for Rewritten { path, before, content } in self.files {
            if content == before {
                continue;
            }
            let is_as_it_was = |now: Vec<u8>| match now == before {
                true => Ok(()),
                false => Err(io::Error::other("it was changed meanwhile")),
            };
            let replaced = agent::read_file(&path).and_then(is_as_it_was);
            if let Err(error) = replaced.and_then(|()| replace(&path, &content)) {
                let message = format!("in force, but not saved: {}: {error}", path.display());
                let help = "`portsteer show` prints the policy in force, comments included, and `portsteer show \
                            --set NAME` a set's addresses";
                complain(&message, Some(help));
                return REFUSED;
            }
            if !json {
                print(&format!("saved to {}\n", path.display()), 0);
            }
        }
        0
    }
}

/// Refuses edits of rules without a name that have another number, or another meaning, in the file.
fn check_numbers(
    path: &Path,
    text: &str,
    edits: &[Edit],
    in_force: &[RuleAnswer],
) -> Result<(), u8> {
    let mut edits = edits.to_vec();
    let numbers: Vec<usize> = edits
        .iter_mut()
        .flat_map(references)
        .filter_map(|rule| match rule {
            RuleRef::Number(number) => Some(*number),
            RuleRef::Name(_) => None,
        })
        .collect();
    if numbers.is_empty() {
        return Ok(());
    }
    let mut set_files = PolicyFiles::beside(path);
    let parsed = policy::file::parse_with(text, &agent::services(), &mut set_files);
    let policy = match parsed {
        Ok(parsed) => parsed.policy,
        Err(diagnostics) => {
            show_diagnostics(path, text, &diagnostics);
            return Err(BAD_INPUT);
        }
    };
    for number in numbers {
        // The agent is the one to say that there is no such rule.
        let Some(known) = in_force.get(number - 1) else { continue };
        let is_same = policy.rules.get(number - 1).is_some_and(|rule| {
            rule.name == known.name
                && policy.matches(rule) == known.matches
                && policy.does(rule) == known.action
        });
        if !is_same {
            let message = format!(
                "{} cannot be saved to: its rule #{number} is not the one that is #{number} in force \
                 ({}, {})",
                path.display(),
                known.matches,
                known.action
            );
            let help = format!("`portsteer diff {}` shows what is different", path.display());
            complain(&message, Some(&help));
            return Err(BAD_INPUT);
        }
    }
    Ok(())
}

/// Puts a whole new file in a file's place, with its owner and permissions.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    // A link is to go on being one.
    let path = &fs::canonicalize(path)?;
    let metadata = fs::metadata(path)?;
    let new = path.with_added_extension("portsteer-new");
    let write = || {
        // Whatever stands there is not to be written to: it may be a link to anywhere.
        if let Err(error) = fs::remove_file(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = fs::File::create_new(&new)?;
        // Only root may give files away, and need not where it is the owner's already.
        let made = file.metadata()?;
        if (made.uid(), made.gid()) != (metadata.uid(), metadata.gid()) {
            fchown(&file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        file.set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        path.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
    };
    write().inspect_err(|_| {
        // Of no use to anybody.
        let _ = fs::remove_file(&new);
    })
}
