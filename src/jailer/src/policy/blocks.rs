//! Optional blocks of the module: which apply with a base policy, and what one that does not is missing.
//!
//! CIL drops an optional block whole when it names something that the policy does not declare. The compiler says nothing
//! of it, so this module reads the names itself: types and roles by their endings, which our files keep to, and classes of
//! constraints. Pure.

use std::collections::BTreeSet;

use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Block {
    pub name: String,
    /// Names that the base policy and the module do not declare; none: the block applies.
    pub missing: Vec<String>,
}

/// One parenthesis, or a word.
#[derive(Debug)]
enum Node {
    Word(String),
    List(Vec<Node>),
}

impl Node {
    fn word(&self) -> Option<&str> {
        match self {
            Node::Word(word) => Some(word),
            Node::List(_) => None,
        }
    }

    fn list(&self) -> &[Node] {
        match self {
            Node::Word(_) => &[],
            Node::List(nodes) => nodes,
        }
    }

    fn kind(&self) -> &str {
        self.list().first().and_then(Node::word).unwrap_or_default()
    }
}

/// What is wrong with a text that is not CIL.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: a parenthesis that {what}")]
pub struct NotCil {
    pub line: usize,
    what: &'static str,
}

fn parse(text: &str) -> Result<Vec<Node>, NotCil> {
    let mut open: Vec<(usize, Vec<Node>)> = vec![(0, Vec::new())];
    for (number, line) in text.lines().enumerate() {
        let code = line.split(';').next().unwrap_or_default();
        let spaced = code.replace('(', " ( ").replace(')', " ) ");
        for token in spaced.split_whitespace() {
            let node = match token {
                "(" => {
                    open.push((number + 1, Vec::new()));
                    continue;
                }
                ")" if open.len() > 1 => Node::List(open.pop().map(|(_, nodes)| nodes).unwrap_or_default()),
                ")" => return Err(NotCil { line: number + 1, what: "closes nothing" }),
                word => Node::Word(word.to_owned()),
            };
            if let Some((_, nodes)) = open.last_mut() {
                nodes.push(node);
            }
        }
    }
    match open.as_slice() {
        [_] => Ok(open.pop().map(|(_, nodes)| nodes).unwrap_or_default()),
        [.., (line, _)] => Err(NotCil { line: *line, what: "is not closed" }),
        [] => Ok(Vec::new()),
    }
}

/// Every type, alias, role and class that a text declares, at any depth.
pub fn declared(text: &str, into: &mut BTreeSet<String>) -> Result<(), NotCil> {
    fn walk(nodes: &[Node], into: &mut BTreeSet<String>) {
        for node in nodes {
            match (node.kind(), node.list().get(1).and_then(Node::word)) {
                ("type" | "typealias" | "role" | "class", Some(name)) => {
                    into.insert(name.to_owned());
                }
                ("optional" | "block", _) => walk(node.list(), into),
                _ => {}
            }
        }
    }
    walk(&parse(text)?, into);
    Ok(())
}

/// The optional blocks of a text; `known` are all declared names.
pub fn blocks(text: &str, known: &BTreeSet<String>) -> Result<Vec<Block>, NotCil> {
    let judged = |node: &Node| {
        let name = node.list().get(1).and_then(Node::word).unwrap_or_default().to_owned();
        let mut used = BTreeSet::new();
        names(node, &mut used);
        Block { name, missing: used.into_iter().filter(|word| !known.contains(word)).collect() }
    };
    Ok(parse(text)?.iter().filter(|node| node.kind() == "optional").map(judged).collect())
}

fn names(node: &Node, into: &mut BTreeSet<String>) {
    if node.kind() == "mlsconstrain"
        && let Some(class) = node.list().get(1).map(Node::kind)
    {
        into.insert(class.to_owned());
    }
    for part in node.list() {
        match part {
            Node::Word(word) if word.ends_with("_t") || word.ends_with("_r") => {
                into.insert(word.clone());
            }
            Node::Word(_) => {}
            Node::List(_) => names(part, into),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_applies_where_all_its_names_are_declared() {
        let module = "(type casemate_runner_t) ; our own
            (optional with_virt (allow svirt_t casemate_runner_t (fd (use))))
            (optional with_role (roletype staff_r casemate_runner_t))
            (optional with_class (mlsconstrain (memfd_file (all)) (or (dom h1 h2) (neq t1 casemate_runner_t))))";
        let mut known = BTreeSet::new();
        declared(module, &mut known).unwrap();
        declared("(type svirt_t) (optional x (role staff_r))", &mut known).unwrap();
        let found = blocks(module, &known).unwrap();
        assert_eq!(found.iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), ["with_virt", "with_role", "with_class"]);
        assert!(found[0].missing.is_empty() && found[1].missing.is_empty());
        assert_eq!(found[2].missing, ["memfd_file"]);
        assert_eq!(blocks(module, &BTreeSet::new()).unwrap()[0].missing, ["casemate_runner_t", "svirt_t"]);
    }

    #[test]
    fn text_that_is_not_cil_is_told_with_its_line() {
        let known = BTreeSet::new();
        assert_eq!(blocks("(allow a b\n(c", &known).unwrap_err().line, 2);
        assert_eq!(blocks("(a)\n(b))", &known).unwrap_err().line, 2);
        assert!(blocks("; only ( a comment", &known).unwrap().is_empty());
    }

    #[test]
    fn svirt_40_the_shipped_modules_optional_blocks_are_read() {
        let text = include_str!("../../../../policies/casemate_profiles.cil");
        let mut known = BTreeSet::new();
        for name in ["svirt_t", "svirt_image_t", "casemate_runner_exec_t", "casemate_jailer_t", "casemate_plan_t"] {
            known.insert(name.to_owned());
        }
        let found = blocks(text, &known).unwrap();
        let block = |name: &str| found.iter().find(|b| b.name == name).unwrap();
        assert!(block("casemate_profile_container").missing.contains(&"container_kvm_t".to_owned()));
        assert_eq!(block("casemate_profile_svirt").missing, ["casemate_content_t"]);
    }
}
