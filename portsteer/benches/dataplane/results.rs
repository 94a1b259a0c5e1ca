//! Figures that are kept: `results.json`, contest by contest, each with the machine and the day. What is measured
//! again takes the place of what was there; pictures and tables are made from what is in the file.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::{Result, page, pictures};

const NAME: &str = "results.json";

/// Makes sure that something can be kept here, before it takes half an hour to measure it.
pub fn prepare(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let page = page(directory);
    fs::read_to_string(&page).map_err(|error| format!("{}: {error}", page.display()))?;
    match read(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        kept => Ok(kept.map(drop)?),
    }
}

/// Keeps these contests, and renders all that are kept.
pub fn write(directory: &Path, measured: Map<String, Value>) -> Result<()> {
    let mut kept = match read(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => json!({ "contests": {} }),
        kept => kept?,
    };
    let contests = kept["contests"].as_object_mut().ok_or("results.json has no contests")?;
    contests.extend(measured);
    fs::write(directory.join(NAME), format!("{kept:#}\n"))?;
    render(directory, &kept)
}

/// Renders all that are kept.
pub fn redraw(directory: &Path) -> Result<()> {
    render(directory, &read(directory)?)
}

fn read(directory: &Path) -> io::Result<Value> {
    let path = directory.join(NAME);
    let explain = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text =
        fs::read_to_string(&path).map_err(|error| io::Error::new(error.kind(), explain(&error)))?;
    serde_json::from_str(&text)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, explain(&error)))
}

fn render(directory: &Path, kept: &Value) -> Result<()> {
    pictures::draw(directory, &kept["contests"])?;
    page::update(&page(directory), &kept["contests"])
}

/// The page that has the tables.
fn page(directory: &Path) -> PathBuf {
    directory.parent().unwrap_or(directory).join("benchmarks.md")
}
