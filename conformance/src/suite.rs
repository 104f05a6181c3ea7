//! All there is to run, by family: the operations of S3, and the clients that people use.

use crate::{
    case::Case,
    cases,
    clients::{self, Client},
};

/// What a family is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Operations, asked for by the SDK and by hand.
    Operations,
    /// A client's everyday work.
    Client,
}

/// Cases that belong together: those of one module.
#[derive(Debug, Clone)]
pub struct Family {
    /// What they are about.
    pub kind: Kind,
    /// What a person calls it.
    pub title: String,
    /// The module.
    pub module: &'static str,
    /// The cases.
    pub cases: Vec<Case>,
}

/// All families, operations first. Clients that are installed are asked for their versions.
pub fn families() -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for case in cases::all() {
        match families.last_mut().filter(|family| family.module == case.family) {
            Some(family) => family.cases.push(case),
            None => families.push(Family {
                kind: Kind::Operations,
                title: module_title(case.family),
                module: case.family,
                cases: vec![case],
            }),
        }
    }
    families.extend(clients::all().iter().map(client_family));
    families
}

fn client_family(client: &Client) -> Family {
    Family {
        kind: Kind::Client,
        title: match (client.version)() {
            Some(version) => format!("{} {version}", client.name),
            None => client.name.to_owned(),
        },
        module: client.module,
        cases: client.cases.clone(),
    }
}

/// `crate::cases::bad_input` is `bad input`.
fn module_title(module: &str) -> String {
    let last = module.rsplit("::").next().unwrap_or(module);
    last.replace('_', " ")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_case_is_in_one_family_and_every_family_has_a_title_of_its_own() {
        let families = families();
        let cases: usize = families.iter().map(|family| family.cases.len()).sum();
        let of_clients: usize = clients::all().iter().map(|client| client.cases.len()).sum();
        assert_eq!(cases, cases::all().len() + of_clients);
        let titles: BTreeSet<&str> = families.iter().map(|family| family.title.as_str()).collect();
        assert_eq!(titles.len(), families.len());
        for family in &families {
            assert!(
                family.cases.iter().all(|case| case.family == family.module),
                "{family:?}"
            );
            assert!(!family.cases.is_empty());
        }
        assert!(titles.contains("bad input"), "{titles:?}");
    }
}
