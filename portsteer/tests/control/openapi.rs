//! The description of the control socket: it is one, and what the agent answers and takes is what it says.

use std::collections::BTreeSet;

use portsteer_testkit::{agent::Agent, sandbox::sandbox, site::Site};
use serde_json::{Value, json};

use crate::{
    HEAD, INSTANCE,
    http::{self, JSON, Reply, ask, get, send_json},
    policy, rule,
};

/// As the agent describes itself, and what of it was seen.
struct Description {
    document: Value,
    seen: BTreeSet<(String, String, u16)>,
}

impl Description {
    fn of(agent: &Agent) -> Self {
        let reply = get(agent, "/v1/openapi.json");
        assert_eq!(reply.status, 200);
        Self { document: reply.json(), seen: BTreeSet::new() }
    }

    fn operation(&self, method: &str, path: &str) -> &Value {
        let operation = &self.document["paths"][path][method.to_lowercase()];
        assert!(operation.is_object(), "{method} {path} is not described");
        operation
    }

    /// The answer is one of those that are described, in all its parts.
    fn check(&mut self, method: &str, path: &str, status: u16, reply: &Reply) {
        let told = String::from_utf8_lossy(&reply.body);
        assert_eq!(reply.status, status, "{method} {path}: {told}");
        let response = &self.operation(method, path)["responses"][status.to_string()];
        // Where something is in force, the answer says which policy.
        assert!(
            reply.tag.is_none() || response["headers"]["ETag"].is_object() || status >= 400,
            "{method} {path}: {status}: {:?} is not described",
            reply.tag
        );
        let schema = &response["content"][JSON]["schema"];
        assert!(schema.is_object(), "{method} {path}: {status} is not described: {told}");
        self.validate(schema, &reply.json()).unwrap_or_else(|errors| {
            panic!("{method} {path}: {status} is not as described: {errors}\n{told}")
        });
        self.seen.insert((method.to_owned(), path.to_owned(), status));
    }

    /// The same of an answer that is nothing but its head.
    fn check_head(&mut self, path: &str, status: u16, reply: &Reply) {
        assert_eq!(reply.status, status, "HEAD {path}");
        let response = &self.operation("HEAD", path)["responses"][status.to_string()];
        assert!(response["description"].is_string(), "HEAD {path}: {status} is not described");
        assert_eq!(reply.tag.is_some(), response["headers"]["ETag"].is_object());
        self.seen.insert(("HEAD".to_owned(), path.to_owned(), status));
    }

    /// Whether a request's body is as described.
    fn takes(&self, method: &str, path: &str, body: &Value) -> Result<(), String> {
        let content = &self.operation(method, path)["requestBody"]["content"][JSON]["schema"];
        assert!(content.is_object(), "{method} {path}: the request's body is not described");
        self.validate(content, body)
    }

    fn validate(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let mut schema = schema.clone();
        // What references point to.
        schema["components"] = self.document["components"].clone();
        close(&mut schema, false);
        let validator = jsonschema::draft202012::new(&schema).expect("a schema");
        let errors: Vec<String> = validator
            .iter_errors(value)
            .map(|error| format!("{} at {}", error, error.instance_path()))
            .collect();
        if errors.is_empty() { Ok(()) } else { Err(errors.join("; ")) }
    }
}

/// Lets objects have nothing but what is described. Fields may be added by later versions, and by this one only
/// together with their description.
fn close(schema: &mut Value, is_part: bool) {
    match schema {
        Value::Object(fields) => {
            let is_object =
                ["properties", "allOf", "$ref"].iter().any(|&it| fields.contains_key(it));
            // A part of a whole does not know the other parts.
            if is_object && !is_part {
                fields.insert("unevaluatedProperties".to_owned(), json!(false));
            }
            for (name, field) in fields {
                match name.as_str() {
                    "allOf" => field.as_array_mut().into_iter().flatten().for_each(|part| {
                        assert_ne!(part["additionalProperties"], false, "and the others? {part}");
                        close(part, true);
                    }),
                    // Closed where they are referred to.
                    "schemas" => field.as_object_mut().into_iter().for_each(|schemas| {
                        schemas.values_mut().for_each(|schema| close(schema, true));
                    }),
                    "example" | "examples" | "enum" => {}
                    _ => close(field, false),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| close(item, false)),
        _ => {}
    }
}

/// Calls `look` with every object of a document.
fn walk(value: &Value, look: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(fields) => {
            look(fields);
            fields.values().for_each(|field| walk(field, look));
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, look)),
        _ => {}
    }
}

/// By <https://spec.openapis.org/oas/v3.1.1>, as far as it can be said without a schema of schemas.
#[test]
fn the_description_is_one() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &policy());
        let Description { document, .. } = Description::of(&agent);
        assert!(document["openapi"].as_str().is_some_and(|version| version.starts_with("3.1.")));
        for field in ["title", "version", "description"] {
            assert!(document["info"][field].as_str().is_some_and(|it| !it.is_empty()), "{field}");
        }
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));

        let paths = document["paths"].as_object().expect("paths");
        assert!(paths.len() >= 10, "{paths:?}");
        let mut ids = BTreeSet::new();
        for (path, operations) in paths {
            assert!(path.starts_with("/v1/"), "{path}");
            for (method, operation) in operations.as_object().expect("operations") {
                assert!(
                    ["get", "head", "put", "post"].contains(&method.as_str()),
                    "{method} {path}"
                );
                let id = operation["operationId"].as_str().expect("an operation's id");
                assert!(ids.insert(id.to_owned()), "{id} twice");
                let summary = operation["summary"].as_str().or(operation["description"].as_str());
                assert!(summary.is_some_and(|summary| !summary.is_empty()), "{method} {path}");
                let responses = operation["responses"].as_object().expect("responses");
                assert!(responses.contains_key("200"), "{method} {path}");
                for (status, response) in responses {
                    assert!(response["description"].is_string(), "{method} {path} {status}");
                    assert!(status.parse::<u16>().is_ok_and(|it| (200..600).contains(&it)));
                }
                let declared: Vec<&str> = operation["parameters"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|parameter| parameter["in"] == "path")
                    .inspect(|parameter| assert_eq!(parameter["required"], true))
                    .filter_map(|parameter| parameter["name"].as_str())
                    .collect();
                let used: Vec<&str> = path
                    .split('/')
                    .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                    .collect();
                assert_eq!(declared, used, "{method} {path}");
            }
        }

        let mut references = 0;
        walk(&document, &mut |fields| {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                references += 1;
                let pointer = reference.strip_prefix('#').expect("a place in the document");
                assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
            }
        });
        assert!(references > 20, "{references}");
        for (name, schema) in document["components"]["schemas"].as_object().expect("schemas") {
            let mut schema = schema.clone();
            schema["components"] = document["components"].clone();
            let is_one = jsonschema::draft202012::new(&schema);
            assert!(is_one.is_ok(), "{name}: {is_one:?}");
        }
    });
}

/// What no test here can bring about: a request that takes a minute, hundreds of MiB at the same time, a kernel
/// that refuses to be read, and a state directory that gets lost (which the agent's tests look at).
fn is_out_of_reach(method: &str, path: &str, status: u16) -> bool {
    let of_kernel = [
        ("GET", "/v1/status"),
        ("GET", "/v1/stats"),
        ("POST", "/v1/confirm"),
        ("POST", "/v1/detach"),
    ];
    let of_content = [("GET", "/v1/sets/{name}"), ("POST", "/v1/diff")];
    let of_kernel = [&of_kernel[..], &of_content].concat();
    matches!(status, 408 | 503) || (status == 409 && of_kernel.contains(&(method, path)))
}

const SETS: &str = "[sets.few]\naddresses = [\"192.0.2.0/24\", \"2001:db8::1\"]\n";

/// Everything that answers can have in them: rules with and without names, sets, a target.
fn rich_policy() -> String {
    [
        HEAD,
        SETS,
        "[targets.cores]\ncpus = [0]\n",
        &rule("blocked", 2000, "drop"),
        &rule("listed", 2001, "drop"),
        "src = \"@few\"\n",
        "[[rules]]\nprotocol = \"udp\"\ndst_port = 2002\naction = { steer = \"cores\" }\n",
        &rule("late", 2000, "pass"),
    ]
    .concat()
}

/// An operator whose connection a policy of `tcp` to port 22 would cut.
const SSH: &str = "198.51.100.7 51000 198.51.100.1 22";

fn no_ssh() -> String {
    policy()
        + "[[rules]]\nname = \"no-ssh\"\nprotocol = \"tcp\"\ndst_port = 22\naction = \"drop\"\n"
}

#[test]
fn answers_are_as_described() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &rich_policy());
        let mut it = Description::of(&agent);
        it.check("GET", "/v1/openapi.json", 200, &get(&agent, "/v1/openapi.json"));

        // With something attached.
        for path in ["/v1/status", "/v1/stats", "/v1/policy"] {
            it.check("GET", path, 200, &get(&agent, path));
        }
        let of_set = "/v1/sets/{name}";
        let set = get(&agent, "/v1/sets/few");
        assert_eq!(set.json()["prefixes"], json!(["192.0.2.0/24", "2001:db8::1"]));
        it.check("GET", of_set, 200, &set);
        it.check("GET", of_set, 404, &get(&agent, "/v1/sets/many"));
        it.check("GET", of_set, 422, &get(&agent, "/v1/sets/%ff"));

        // Differences of every kind.
        let diff = |body: &Value| send_json(&agent, "POST", "/v1/diff", body);
        let other = rich_policy()
            .replace("2001:db8::1", "2001:db8::2")
            .replace("cpus = [0]", "cpus = [0]\nqueue = 64")
            .replace("dst_port = 2001", "dst_port = [2001, 2003]")
            .replace("mode = \"native\"", "mode = \"auto\"")
            .replace("name = \"late\"", "name = \"later\"");
        let reply = diff(&json!({ "policy": other }));
        assert_eq!(reply.json()["same"], false);
        it.check("POST", "/v1/diff", 200, &reply);
        let reply = diff(&json!({ "policy": rich_policy() }));
        assert_eq!(reply.json()["same"], true, "{reply:?}");
        it.check("POST", "/v1/diff", 200, &reply);
        it.check("POST", "/v1/diff", 422, &diff(&json!({ "policy": "version = 2\n" })));
        it.check("POST", "/v1/diff", 422, &ask(&agent, "POST", "/v1/diff?colour=red", None));

        // Requests that are wrong.
        let put = |body: &Value| send_json(&agent, "PUT", "/v1/policy", body);
        let put_text = |query: &str, text: &str| {
            let path = format!("/v1/policy{query}");
            ask(&agent, "PUT", &path, Some(("application/toml", text.as_bytes())))
        };
        let edit = |body: &Value| send_json(&agent, "POST", "/v1/edits", body);
        let post = |path: &str| ask(&agent, "POST", path, None);
        for (body, said) in [
            (json!({ "policy": "version = 1\n" }), "interfaces"),
            (json!({ "policy": policy(), "colour": "red" }), "colour"),
            (json!({ "policy": policy(), "confirm_seconds": 0 }), "no time"),
            (json!({ "policy": policy(), "confirm_seconds": 604_801 }), "at most"),
            (json!({ "policy": policy(), "confirm_seconds": -1 }), "`-1`"),
            (json!({ "policy": policy(), "ssh_connection": "from home" }), "from home"),
            (json!({ "text": policy() }), "policy"),
            (json!([]), "wrong"),
        ] {
            let reply = put(&body);
            let (kind, words) = reply.refusal();
            assert_eq!(kind, "bad-input");
            assert!(words.to_lowercase().contains(said), "{body}: {words}");
            it.check("PUT", "/v1/policy", 422, &reply);
        }
        for text in ["{", "", "\u{7f}", "[1,2"] {
            let reply = ask(&agent, "PUT", "/v1/policy", Some((JSON, text.as_bytes())));
            it.check("PUT", "/v1/policy", 422, &reply);
        }
        let missing_file = HEAD.to_owned() + "[sets.a]\nfile = \"a.txt\"\n";
        let reply = put_text("", &missing_file);
        assert!(reply.refusal().1.contains("was not sent along"), "{:?}", reply.refusal());
        it.check("PUT", "/v1/policy", 422, &reply);
        it.check("PUT", "/v1/policy", 422, &put_text("?confirm_seconds=soon", &policy()));
        it.check("PUT", "/v1/policy", 422, &put_text("?colour=red", &policy()));
        // A trial that is not one would be worse than none.
        let json = json!({ "policy": policy() }).to_string();
        let reply =
            ask(&agent, "PUT", "/v1/policy?confirm_seconds=60", Some((JSON, json.as_bytes())));
        it.check("PUT", "/v1/policy", 422, &reply);
        let reply = put_text("", &json);
        assert!(reply.refusal().1.contains("Content-Type"), "{:?}", reply.refusal());
        it.check("PUT", "/v1/policy", 422, &reply);
        it.check("PUT", "/v1/policy", 409, &put_text("", &policy().replace("uplink", "uplnik")));
        for body in [
            json!({ "edits": [] }),
            json!({}),
            json!({ "edits": [{ "edit": "remove-rule", "rule": "nobody" }] }),
            json!({ "edits": [{ "edit": "paint-rule", "rule": "blocked" }] }),
        ] {
            it.check("POST", "/v1/edits", 422, &edit(&body));
        }
        let reply = ask(&agent, "POST", "/v1/rollback", Some((JSON, b"{\"force\": 1}")));
        it.check("POST", "/v1/rollback", 422, &reply);
        for (method, path) in [
            ("PUT", "/v1/policy"),
            ("POST", "/v1/diff"),
            ("POST", "/v1/edits"),
            ("POST", "/v1/rollback"),
        ] {
            use std::io::Write as _;
            let mut stream = http::connect(&agent.socket());
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
                200 << 20
            );
            stream.write_all(head.as_bytes()).expect("a request can be sent");
            it.check(method, path, 413, &http::read(&mut stream).expect("an answer"));
        }

        // Conditions that do not hold, and what is none.
        for (method, path) in [
            ("PUT", "/v1/policy"),
            ("POST", "/v1/confirm"),
            ("POST", "/v1/rollback"),
            ("POST", "/v1/detach"),
            ("POST", "/v1/edits"),
        ] {
            let body = match path {
                "/v1/policy" => json!({ "policy": policy() }),
                "/v1/edits" => json!({ "edits": [{ "edit": "remove-rule", "rule": "blocked" }] }),
                _ => json!({}),
            };
            let body = body.to_string();
            let ask = |condition| {
                let body = Some((JSON, body.as_bytes()));
                http::ask_with(&agent.socket(), method, path, &[condition], body)
            };
            it.check(method, path, 412, &ask(("If-Match", "\"another\"")));
            it.check(method, path, 412, &ask(("If-None-Match", "*")));
            it.check(method, path, 422, &ask(("If-Match", "another")));
            it.check(method, path, 422, &ask(("If-None-Match", "**")));
            for name in ["If-Match", "If-None-Match"] {
                let parameters = it.operation(method, path)["parameters"].as_array();
                let mut parameters = parameters.expect("parameters").iter();
                let described = parameters.find(|it| it["name"] == name && it["in"] == "header");
                assert_eq!(described.expect(name)["required"], false);
            }
        }
        it.check_head("/v1/policy", 200, &ask(&agent, "HEAD", "/v1/policy", None));

        // Nothing of that has changed anything.
        let generation = get(&agent, "/v1/policy").json()["generation"].clone();
        assert_eq!(generation, 1);
        it.check("POST", "/v1/rollback", 404, &post("/v1/rollback"));
        it.check("POST", "/v1/confirm", 404, &post("/v1/confirm"));

        // A trial, a policy, edits, and back.
        let trial = json!({ "policy": policy(), "confirm_seconds": 600 });
        it.check("PUT", "/v1/policy", 200, &put(&trial));
        for path in ["/v1/status", "/v1/policy"] {
            let reply = get(&agent, path);
            let left = match path {
                "/v1/status" => reply.json()["agent"]["trial_seconds_left"].as_u64(),
                _ => reply.json()["trial_seconds_left"].as_u64(),
            };
            assert!(left.is_some_and(|left| (1..=600).contains(&left)), "{reply:?}");
            it.check("GET", path, 200, &reply);
        }
        it.check("PUT", "/v1/policy", 409, &put(&trial));
        let remove = json!({ "edits": [{ "edit": "remove-rule", "rule": "blocked" }] });
        it.check("POST", "/v1/edits", 409, &edit(&remove));
        it.check("POST", "/v1/confirm", 200, &post("/v1/confirm"));
        it.check("POST", "/v1/edits", 200, &edit(&remove));
        it.check("POST", "/v1/rollback", 200, &post("/v1/rollback"));
        it.check("PUT", "/v1/policy", 200, &put(&json!({ "policy": no_ssh() })));
        it.check("PUT", "/v1/policy", 200, &put_text("?path=/etc/p.toml", &policy()));
        let cut = json!({ "ssh_connection": SSH });
        it.check("POST", "/v1/rollback", 409, &send_json(&agent, "POST", "/v1/rollback", &cut));

        // With nothing attached.
        it.check("POST", "/v1/detach", 200, &post("/v1/detach"));
        it.check("POST", "/v1/detach", 404, &post("/v1/detach"));
        let reply = get(&agent, "/v1/status");
        assert_eq!(reply.json()["dataplane"], Value::Null);
        it.check("GET", "/v1/status", 200, &reply);
        it.check("GET", "/v1/stats", 404, &get(&agent, "/v1/stats"));
        it.check_head("/v1/policy", 404, &ask(&agent, "HEAD", "/v1/policy", None));
        it.check("GET", "/v1/policy", 404, &get(&agent, "/v1/policy"));
        it.check("GET", of_set, 404, &get(&agent, "/v1/sets/few"));
        it.check("POST", "/v1/diff", 404, &diff(&json!({ "policy": policy() })));
        it.check("POST", "/v1/edits", 404, &edit(&remove));
        it.check("POST", "/v1/confirm", 404, &post("/v1/confirm"));

        // Whatever else is asked is answered in the same way.
        let error = json!({ "$ref": "#/components/schemas/ErrorAnswer" });
        for (method, path, status) in [
            ("GET", "/", 404),
            ("GET", "/v1", 404),
            ("GET", "/v2/status", 404),
            ("POST", "/v1/statuses", 404),
            ("POST", "/v1/status", 405),
            ("DELETE", "/v1/policy", 405),
            ("GET", "/v1/confirm", 405),
            ("GET", "/v1/edits", 405),
            ("GET", "/v1/diff", 405),
            ("BREW", "/v1/stats", 405),
        ] {
            let reply = ask(&agent, method, path, None);
            assert_eq!(reply.status, status, "{method} {path}");
            it.validate(&error, &reply.json()).unwrap_or_else(|errors| panic!("{path}: {errors}"));
            assert!(reply.refusal().1.contains("openapi.json"), "{reply:?}");
        }

        for (path, operations) in it.document["paths"].as_object().expect("paths") {
            for (method, operation) in operations.as_object().expect("operations") {
                for status in operation["responses"].as_object().expect("responses").keys() {
                    let status = status.parse().expect("a number");
                    let seen = (method.to_uppercase(), path.clone(), status);
                    let is_excused = is_out_of_reach(&seen.0, path, status);
                    assert_ne!(it.seen.contains(&seen), is_excused, "{seen:?}: was it seen?");
                }
            }
        }
    });
}

/// Whatever the agent can read is described, and nothing else.
#[test]
fn requests_are_as_described() {
    sandbox(|| {
        let site = Site::quiet();
        let agent = Agent::serve(&site.host, INSTANCE, &rich_policy());
        let it = Description::of(&agent);
        let edits = |edit: Value| ("POST", "/v1/edits", json!({ "edits": [edit] }));
        let put = |request: Value| ("PUT", "/v1/policy", request);
        let named = json!({
            "name": "all", "protocol": ["tcp"], "src": ["@few"], "src_port": ["1024-65535"],
            "dst": ["!192.0.2.1"], "dst_port": ["http", "8080"], "vlan": ["untagged"],
            "interface": ["uplink"], "action": "drop",
        });
        let good = [
            put(json!({ "policy": policy() })),
            put(json!({ "policy": policy(), "path": null, "files": [], "force": true })),
            put(json!({ "policy": policy(), "files": [{ "name": "a", "content": "::1\n" }] })),
            put(json!({ "policy": rich_policy(), "path": "/etc/p.toml", "ssh_connection": SSH })),
            put(json!({ "policy": rich_policy(), "confirm_seconds": null })),
            edits(json!({ "edit": "add-rule", "rule": { "action": "pass" } })),
            edits(json!({ "edit": "add-rule", "rule": named, "place": "first" })),
            edits(json!({ "edit": "move-rule", "rule": "all", "place": "last" })),
            edits(json!({ "edit": "move-rule", "rule": "all", "place": { "before": "#2" } })),
            edits(json!({ "edit": "move-rule", "rule": "#3", "place": { "after": "blocked" } })),
            edits(json!({ "edit": "remove-rule", "rule": "name=all" })),
            edits(json!({ "edit": "add-prefixes", "set": "few", "prefixes": ["198.51.100.9"] })),
            edits(
                json!({ "edit": "remove-prefixes", "set": "few", "prefixes": ["198.51.100.9/32"] }),
            ),
            edits(json!({
                "edit": "add-rule",
                "rule": { "protocol": ["icmp"], "icmp_type": ["3/4"], "action": "steer cores" },
            })),
            (
                "POST",
                "/v1/edits",
                json!({
                    "edits": [{ "edit": "remove-rule", "rule": "#1" }], "force": false,
                    "confirm_seconds": null, "ssh_connection": SSH,
                }),
            ),
            ("POST", "/v1/rollback", json!({})),
            ("POST", "/v1/rollback", json!({ "force": true, "ssh_connection": null })),
            ("POST", "/v1/diff", json!({ "policy": policy() })),
        ];
        for (method, path, body) in &good {
            it.takes(method, path, body).unwrap_or_else(|errors| panic!("{body}: {errors}"));
            let reply = send_json(&agent, method, path, body);
            assert_eq!(reply.status, 200, "{body}: {:?}", reply.refusal());
        }
        let add = |rule: Value| edits(json!({ "edit": "add-rule", "rule": rule }));
        let bad = [
            put(json!({})),
            put(json!({ "policy": 1 })),
            put(json!({ "policy": policy(), "when": "now" })),
            put(json!({ "policy": policy(), "files": [{ "name": "a" }] })),
            put(json!({ "policy": policy(), "files": { "a": "::1" } })),
            put(json!({ "policy": policy(), "confirm_seconds": "60" })),
            put(json!({ "policy": policy(), "force": null })),
            ("POST", "/v1/edits", json!({ "edits": [] })),
            ("POST", "/v1/edits", json!({ "edits": [1] })),
            (
                "POST",
                "/v1/edits",
                json!({ "edits": [{ "edit": "remove-rule", "rule": "#1" }], "how": 1 }),
            ),
            edits(json!({ "edit": "remove-rule" })),
            edits(json!({ "edit": "remove-rule", "rule": 1 })),
            edits(json!({ "edit": "remove-rule", "rule": "#1", "place": "first" })),
            edits(json!({ "edit": "move-rule", "rule": "#1" })),
            edits(json!({ "edit": "move-rule", "rule": "#1", "place": "middle" })),
            edits(json!({ "edit": "move-rule", "rule": "#1", "place": { "beside": "#2" } })),
            edits(json!({ "edit": "add-prefixes", "set": "few" })),
            edits(json!({ "edit": "add-prefixes", "set": "few", "prefixes": "::1" })),
            edits(json!({ "rule": "#1" })),
            add(json!({})),
            add(json!({ "action": "pass", "dst_port": "80" })),
            add(json!({ "action": "pass", "dst_port": [80] })),
            add(json!({ "action": "pass", "colour": "red" })),
            ("POST", "/v1/diff", json!({ "path": "p.toml" })),
            ("POST", "/v1/rollback", json!({ "force": "yes" })),
            ("POST", "/v1/rollback", json!({ "forse": true })),
        ];
        let before = get(&agent, "/v1/policy").json()["generation"].clone();
        for (method, path, body) in &bad {
            assert!(it.takes(method, path, body).is_err(), "{method} {path}: {body}");
            let reply = send_json(&agent, method, path, body);
            assert_eq!(reply.status, 422, "{body}: {reply:?}");
        }
        assert_eq!(get(&agent, "/v1/policy").json()["generation"], before);
    });
}
