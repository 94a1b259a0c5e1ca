//! Costs against numbers, as pictures: one for each [kind of packet](crate::curves), with everyone on it.

use std::path::Path;

use plotters::{
    coord::Shift,
    prelude::{
        ChartBuilder, Circle, Cross, DashedLineSeries, DrawingArea, DrawingBackend,
        IntoDrawingArea as _, IntoFont as _, IntoLogRange as _, LineSeries, PathElement, Rectangle,
        SVGBackend, Text, TriangleMarker,
    },
    style::{Color as _, RGBColor, WHITE},
};
use serde_json::Value;

use crate::{Result, growth::with_commas};

/// All of it, and what of it the names have, on the right. In pixels.
const SIZE: (u32, u32) = (1_080, 640);
const NAMES: u32 = 300;

const INK: RGBColor = RGBColor(40, 40, 40);
const GREY: RGBColor = RGBColor(130, 130, 130);

/// What a curve's points look like.
#[derive(Clone, Copy)]
enum Marker {
    Circle,
    Triangle,
    Cross,
    Square,
}

/// How those are drawn whose name begins like this; the first that fits.
const STYLES: [(&str, RGBColor, Marker); 10] = [
    ("portsteer, mixed rules", RGBColor(86, 180, 233), Marker::Triangle),
    ("portsteer, prefixes", RGBColor(86, 180, 233), Marker::Triangle),
    ("portsteer", RGBColor(0, 90, 181), Marker::Circle),
    ("xdp-filter", RGBColor(0, 130, 80), Marker::Square),
    ("LPM trie, prefixes", RGBColor(120, 190, 60), Marker::Triangle),
    ("LPM trie", RGBColor(0, 130, 80), Marker::Square),
    ("nftables, verdict map", RGBColor(204, 121, 167), Marker::Triangle),
    ("nftables, interval set", RGBColor(150, 70, 180), Marker::Square),
    ("nftables, prefixes", RGBColor(230, 159, 0), Marker::Triangle),
    ("nftables", RGBColor(200, 50, 30), Marker::Circle),
];
/// How long the dashes of lines are, and what is between them.
const DASHES: [u32; 2] = [7, 2];
const GAP: u32 = 4;

const OTHER: (RGBColor, Marker) = (RGBColor(120, 80, 20), Marker::Cross);

/// One contestant of many sizes.
struct Curve {
    name: String,
    points: Vec<Point>,
}

/// A size, and what it costs: the median, and between what half of the rounds lie. Those of the ratio to the empty program,
/// times what that costs: the machine's speed changes from round to round, and this is what it changes least.
#[derive(Clone, Copy)]
struct Point {
    size: f64,
    cost: f64,
    low: f64,
    high: f64,
}

/// Draws all pictures that there are figures for.
pub fn draw(directory: &Path, contests: &Value) -> Result<()> {
    for contest in contests.as_object().ok_or("no contests")?.values() {
        for report in contest["reports"].as_array().into_iter().flatten() {
            if let Some(name) = report["picture"].as_str() {
                let path = directory.join(format!("{name}.svg"));
                picture(&path, report, &contest["machine"])
                    .map_err(|error| format!("{}: {error}", path.display()))?;
            }
        }
    }
    Ok(())
}

fn picture(path: &Path, report: &Value, machine: &Value) -> Result<()> {
    let curves = curves(report)?;
    let lines = lines(report)?;
    if curves.is_empty() {
        return Ok(());
    }
    let costs = || {
        let points = curves.iter().flat_map(|curve| &curve.points);
        points.flat_map(|point| [point.low, point.high]).chain(lines.iter().map(|line| line.1))
    };
    let sizes = || curves.iter().flat_map(|curve| &curve.points).map(|point| point.size);
    let (lowest, highest) = (costs().fold(f64::MAX, f64::min), costs().fold(0.0, f64::max));
    let (smallest, largest) = (sizes().fold(f64::MAX, f64::min), sizes().fold(0.0, f64::max));
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(SIZE.0 - NAMES);
    let mut chart = ChartBuilder::on(&left)
        .caption(
            report["title"].as_str().unwrap_or_default(),
            ("sans-serif", 19).into_font().color(&INK),
        )
        .margin(14)
        .x_label_area_size(52)
        .y_label_area_size(78)
        .build_cartesian_2d(
            (smallest * 0.8..largest * 1.25).log_scale(),
            (lowest * 0.75..highest * 1.6).log_scale(),
        )?;
    chart
        .configure_mesh()
        .bold_line_style(RGBColor(205, 205, 205))
        .light_line_style(RGBColor(238, 238, 238))
        .axis_style(GREY)
        .x_desc(counted(report))
        .y_desc("ns per packet, sending included")
        .axis_desc_style(("sans-serif", 16).into_font().color(&INK))
        .label_style(("sans-serif", 14).into_font().color(&INK))
        .x_label_formatter(&|size| with_commas(size.round() as usize))
        .y_label_formatter(&|cost| with_commas(cost.round() as usize))
        .draw()?;
    for ((_, cost), dash) in lines.iter().zip(DASHES) {
        let ends = [(smallest * 0.8, *cost), (largest * 1.25, *cost)];
        chart.draw_series(DashedLineSeries::new(ends, dash, GAP, GREY.stroke_width(2)))?;
    }
    for curve in &curves {
        let (color, shape) = style(&curve.name);
        let line = curve.points.iter().map(|point| (point.size, point.cost));
        chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
        let bar = |point: &Point| {
            PathElement::new(
                vec![(point.size, point.low), (point.size, point.high)],
                color.stroke_width(1),
            )
        };
        chart.draw_series(curve.points.iter().map(bar))?;
        let at = |point: &Point| (point.size, point.cost);
        let points = curve.points.iter();
        match shape {
            Marker::Circle => {
                chart.draw_series(points.map(|point| Circle::new(at(point), 5, color.filled())))?;
            }
            Marker::Triangle => {
                let marker = |point| TriangleMarker::new(at(point), 7, color.filled());
                chart.draw_series(points.map(marker))?;
            }
            Marker::Cross => {
                let marker = |point| Cross::new(at(point), 5, color.stroke_width(2));
                chart.draw_series(points.map(marker))?;
            }
            // There is no element of a fixed size for it.
            Marker::Square => {
                for point in points {
                    let (x, y) = chart.backend_coord(&at(point));
                    left.draw(&Rectangle::new([(x - 5, y - 5), (x + 5, y + 5)], color.filled()))?;
                }
            }
        }
    }
    names(&right, &curves, &lines, machine)?;
    root.present()?;
    Ok(())
}

/// The curves' names, from the one that ends highest down, and then the lines'.
fn names<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    curves: &[Curve],
    lines: &[(String, f64)],
    machine: &Value,
) -> Result<()>
where
    B::ErrorType: 'static,
{
    let last = |curve: &Curve| curve.points.last().map_or(0.0, |point| point.cost);
    let mut ordered: Vec<&Curve> = curves.iter().collect();
    ordered.sort_by(|one, other| last(other).total_cmp(&last(one)));
    let font = ("sans-serif", 15).into_font().color(&INK);
    let mut y = 64;
    for curve in ordered {
        let (color, shape) = style(&curve.name);
        area.draw(&PathElement::new(vec![(6, y), (36, y)], color.stroke_width(2)))?;
        match shape {
            Marker::Circle => area.draw(&Circle::new((21, y), 5, color.filled()))?,
            Marker::Triangle => area.draw(&TriangleMarker::new((21, y), 7, color.filled()))?,
            Marker::Cross => area.draw(&Cross::new((21, y), 5, color.stroke_width(2)))?,
            Marker::Square => {
                area.draw(&Rectangle::new([(16, y - 5), (26, y + 5)], color.filled()))?;
            }
        }
        area.draw(&Text::new(curve.name.clone(), (46, y - 7), font.clone()))?;
        y += 26;
    }
    for ((name, cost), dash) in lines.iter().zip(DASHES) {
        let (dash, gap) = (dash as i32, GAP as i32);
        for at in (6..36).step_by((dash + gap) as usize) {
            area.draw(&PathElement::new(vec![(at, y), (at + dash, y)], GREY.stroke_width(2)))?;
        }
        area.draw(&Text::new(format!("{name}: {cost:.0} ns"), (46, y - 7), font.clone()))?;
        y += 26;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let notes = [
        "Medians of the ratio to the empty program in the".to_owned(),
        "same rounds; bars: half of the rounds.".to_owned(),
        format!("{}, {} CPUs", text(&machine["cpu"]), machine["cpus"]),
        format!("Linux {}", text(&machine["kernel"])),
        text(&machine["date"]).chars().take(10).collect(),
    ];
    for note in notes {
        y += 19;
        area.draw(&Text::new(note, (6, y), ("sans-serif", 12).into_font().color(&GREY)))?;
    }
    Ok(())
}

/// What the numbers are of.
fn counted(report: &Value) -> &'static str {
    let is_of_sets = report["picture"].as_str().is_some_and(|name| name.starts_with("sets"));
    if is_of_sets { "addresses or prefixes in the set" } else { "rules or ports" }
}

fn style(name: &str) -> (RGBColor, Marker) {
    let found = STYLES.iter().find(|(start, ..)| name.starts_with(start));
    found.map_or(OTHER, |(_, color, marker)| (*color, *marker))
}

fn curves(report: &Value) -> Result<Vec<Curve>> {
    let mut curves: Vec<Curve> = Vec::new();
    let zero = report["zero_ns"].as_f64().ok_or("no empty program")?;
    for row in report["rows"].as_array().ok_or("no rows")? {
        let (Some(name), Some(size)) = (row["curve"].as_str(), row["size"].as_f64()) else {
            continue;
        };
        let cost = |ratio: &Value| Some(zero * ratio.as_f64()?);
        let quartiles = &row["times_zero_quartiles"];
        let point = Point {
            size,
            cost: cost(&row["times_zero"]).ok_or("a row without its ratio")?,
            low: cost(&quartiles[0]).ok_or("a row without quartiles")?,
            high: cost(&quartiles[1]).ok_or("a row without quartiles")?,
        };
        match curves.iter_mut().find(|curve| curve.name == name) {
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve { name: name.to_owned(), points: vec![point] }),
        }
    }
    for curve in &mut curves {
        curve.points.sort_by(|one, other| one.size.total_cmp(&other.size));
    }
    Ok(curves)
}

/// Those without a number: the empty program, and whoever else costs the same everywhere.
fn lines(report: &Value) -> Result<Vec<(String, f64)>> {
    let (name, zero) = (report["zero"].as_str(), report["zero_ns"].as_f64());
    let (name, zero) = name.zip(zero).ok_or("no empty program")?;
    let mut lines = vec![(name.to_owned(), zero)];
    let rows = report["rows"].as_array().ok_or("no rows")?;
    for row in rows.iter().filter(|row| row["size"].is_null()) {
        if let (Some(name), Some(ratio)) = (row["row"].as_str(), row["times_zero"].as_f64()) {
            lines.push((name.to_owned(), zero * ratio));
        }
    }
    Ok(lines)
}
