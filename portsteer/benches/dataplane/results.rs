//! Figures that are kept: `results.json`, contest by contest, each with the machine and the day. What is measured
//! again takes the place of what was there; pictures and tables are made from what is in the file.

use std::{fs, io, path::Path};

use serde_json::{Map, Value, json};

use crate::{Result, page, pictures};

/// Keeps these contests, and renders all that are kept.
pub fn write(directory: &Path, measured: Map<String, Value>) -> Result<()> {
    fs::create_dir_all(directory)?;
    let path = directory.join("results.json");
    let mut kept = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text)
            .map_err(|error| format!("{} is no JSON: {error}", path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({ "contests": {} }),
        Err(error) => return Err(format!("{}: {error}", path.display()).into()),
    };
    let contests = kept["contests"].as_object_mut().ok_or("results.json has no contests")?;
    contests.extend(measured);
    fs::write(&path, format!("{kept:#}\n"))?;
    pictures::draw(directory, &kept["contests"])?;
    let page = directory.parent().unwrap_or(directory).join("benchmarks.md");
    page::update(&page, &kept["contests"])
}
