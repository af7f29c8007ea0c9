//! Tests of `templates/service`: a project made from it builds, and its own tests pass.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

#[cfg(feature = "amqp")]
#[allow(dead_code)] // it only has to compile
#[path = "../../templates/service/src/amqp.rs"]
mod amqp;
#[cfg(feature = "kafka")]
#[allow(dead_code)] // it only has to compile
#[path = "../../templates/service/src/kafka.rs"]
mod kafka;
#[path = "../../templates/service/src/service.rs"]
mod service;

/// Makes a project for `broker` from the template, as `cargo generate` does; deleted with the value.
struct Project(PathBuf);

impl Project {
    fn new(broker: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let folder = std::env::temp_dir().join(format!("cqrs-{broker}-{}", std::process::id()));
        let cqrs = root.canonicalize().expect("the checkout").display().to_string();
        let values = [("{{project-name}}", "mailer"), ("{{broker}}", broker), ("{{cqrs}}", &*cqrs)];
        let template = root.join("templates/service");
        fs::create_dir_all(folder.join("src")).expect("a folder");
        for file in ["Cargo.toml", "README.md", "src/main.rs", "src/service.rs"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("src/{broker}.rs")])
        {
            let text = fs::read_to_string(template.join(&file)).expect("a file of the template");
            let text = values.iter().fold(text, |text, (name, value)| text.replace(name, value));
            assert!(!text.contains("{{"), "{file} has a value that nobody asks for:\n{text}");
            fs::write(folder.join(file), text).expect("written");
        }
        // The versions that are here, since the build is offline.
        fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).expect("the lock file");
        Self(folder)
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        let _left_behind = fs::remove_dir_all(&self.0);
    }
}

/// Not built for Kafka, whose client takes minutes: `kafka.rs` is a module of this test.
#[test]
fn a_project_made_from_the_template_builds() {
    assert!(Project::new("kafka").0.join("src/kafka.rs").exists());
    let project = Project::new("amqp");
    let test = std::env::current_exe().expect("this test");
    let target = test.ancestors().nth(3).expect("the target directory").join("template");
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--all-targets", "--target-dir"])
        .arg(target)
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .current_dir(&project.0)
        .output()
        .expect("cargo runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("warning"), "{text}");
}
