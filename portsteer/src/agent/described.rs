//! What the description of the control socket says of conditions, of all operations alike.

use utoipa::{
    Modify,
    openapi::{
        Content, HeaderBuilder, ObjectBuilder, OpenApi, Ref, RefOr, ResponseBuilder,
        path::{Operation, ParameterBuilder, ParameterIn},
        schema::Type,
    },
};

/// Describes `ETag`, `If-Match`, `If-None-Match` and the refusal of a condition that does not hold.
#[derive(Debug)]
pub struct Conditions;

/// The operations that change something.
const CHANGING: [&str; 5] =
    ["/v1/policy", "/v1/confirm", "/v1/rollback", "/v1/detach", "/v1/edits"];

/// The one operation that tells nothing of a policy.
const WITHOUT: &str = "/v1/openapi.json";

impl Modify for Conditions {
    fn modify(&self, description: &mut OpenApi) {
        for (path, item) in &mut description.paths.paths {
            if path == WITHOUT {
                continue;
            }
            let is_changing = CHANGING.contains(&path.as_str());
            let looking = [&mut item.get, &mut item.head];
            looking.into_iter().flatten().for_each(name_policy);
            for operation in [&mut item.put, &mut item.post].into_iter().flatten() {
                if is_changing {
                    take_conditions(operation);
                }
                name_policy(operation);
            }
        }
    }
}

/// Answers have the policy's tag.
fn name_policy(operation: &mut Operation) {
    for (status, response) in &mut operation.responses.responses {
        let RefOr::T(response) = response else { continue };
        if ["200", "412"].contains(&status.as_str()) {
            let text = "names the policy in force that the answer tells of; absent where nothing is in force";
            let header = HeaderBuilder::new()
                .schema(ObjectBuilder::new().schema_type(Type::String))
                .description(Some(text));
            response.headers.insert("ETag".to_owned(), header.build());
        }
    }
}

fn take_conditions(operation: &mut Operation) {
    let parameters = operation.parameters.get_or_insert_default();
    for (name, text) in [
        (
            "If-Match",
            "make the change only while the policy in force has one of these tags (`*`: whatever it is)",
        ),
        (
            "If-None-Match",
            "make the change only while the policy in force has none of these tags (`*`: while nothing is in force)",
        ),
    ] {
        let parameter = ParameterBuilder::new()
            .name(name)
            .parameter_in(ParameterIn::Header)
            .description(Some(text))
            .schema(Some(ObjectBuilder::new().schema_type(Type::String)));
        parameters.push(parameter.build());
    }
    for (status, text) in [
        ("412", "the condition does not hold: another policy is in force, which the answer names"),
        ("422", "the request is wrong"),
    ] {
        let response = ResponseBuilder::new()
            .description(text)
            .content("application/json", Content::new(Some(Ref::from_schema_name("ErrorAnswer"))));
        let responses = &mut operation.responses.responses;
        responses.entry(status.to_owned()).or_insert_with(|| response.build().into());
    }
}
