//! The isolation matrix as a picture: VM by VM, each cell divided by layer, with a symbol and the reason behind it.
//!
//! Few VMs are drawn each; many are drawn as groups of VMs that nothing tells apart, under a map of all pairs.

use maud::{Markup, html};

use super::groups::{Matrix, Standing};
use super::icon;
use super::tally::verdict_word;
use super::text::{Text, count, number, plain, short};
use crate::report::Report;
use crate::rule::Verdict;

/// VMs (or groups) that are drawn with the layers' names in each cell, and at all.
const NAMED: usize = 4;
const DRAWN: usize = 16;

/// Pairs that are listed one by one.
const LISTED: usize = 500;

/// A row and column of the picture: VMs that are alike.
struct Band {
    label: String,
    vms: Vec<usize>,
}

pub fn section(report: &Report) -> Option<Markup> {
    let matrix = Matrix::new(report)?;
    let many = matrix.vms.len() > DRAWN;
    let groups = if many { matrix.groups() } else { (0..matrix.vms.len()).map(|vm| vec![vm]).collect() };
    let bands: Vec<Band> = groups.into_iter().enumerate().map(|(at, vms)| band(&matrix, at, vms, many)).collect();
    let left_out = bands.len().saturating_sub(DRAWN);
    let drawn = &bands[..bands.len() - left_out];
    Some(html! {
        (summary(&matrix))
        @if many {
            p { (count(matrix.vms.len(), "VM")) " fall into " (count(bands.len(), "group")) ": VMs in a group have the same answers towards every other VM." }
        }
        fieldset.filter.layers-filter {
            legend { "Layer" }
            label { input type="radio" name="layer" id="layer-all" checked; "all" }
            @for (at, layer) in matrix.layers.iter().enumerate().take(16) {
                label { input type="radio" name="layer" id={ "layer-" (at) }; (Text(layer)) }
            }
        }
        figure.matrix {
            div.scroll tabindex="0" role="region" aria-label="Picture of the isolation matrix" { (picture(&matrix, drawn)) }
            (legend(&matrix, drawn.len() <= NAMED))
        }
        @if left_out > 0 {
            p.lead { (count(left_out, "further group")) " not drawn here, with fewer weak pairs; the map below shows every pair." }
        }
        @if many { (map(&matrix)) (members(&matrix, &bands)) }
        (weak(&matrix, &bands))
    })
}

fn band(matrix: &Matrix, at: usize, vms: Vec<usize>, many: bool) -> Band {
    let first = matrix.vms[vms[0]];
    let label = match (many, vms.len()) {
        (false, _) => short(first, 22),
        (true, 1) => format!("{}: {}", at + 1, short(first, 16)),
        (true, n) => format!("{}: {n} VMs", at + 1),
    };
    Band { label, vms }
}

fn summary(matrix: &Matrix) -> Markup {
    let standings = matrix.standings();
    let said = [
        (Standing::None, "fail", "kept apart by no layer that is known to hold"),
        (Standing::Some, "high", "kept apart, but not by every layer"),
        (Standing::Unsure, "unknown", "kept apart; not every layer could be looked at"),
        (Standing::All, "pass", "kept apart by every layer, each alone"),
    ];
    html! {
        p.lead { "May the VM of a row reach the VM of a column? A layer holds if it alone would keep them apart." }
        ul.key { @for (standing, symbol, words) in said { @if let Some(n) = standings.get(&standing) {
            li.(symbol) { (icon(symbol)) strong { (count(*n, "ordered pair")) } " " (words) }
        } } }
    }
}

/// Sizes in SVG units, which are pixels where there is room.
struct Sizes {
    named: bool,
    /// Tiles in a row of a cell.
    across: usize,
    tile: usize,
    step: usize,
    width: usize,
    height: usize,
}

impl Sizes {
    fn new(layers: usize, bands: usize) -> Self {
        let layers = layers.max(1);
        if bands <= NAMED {
            return Self { named: true, across: 1, tile: 14, step: 18, width: 122, height: layers * 18 + 10 };
        }
        let across = (1..).find(|n| n * n >= layers).unwrap_or(1);
        let (tile, step) = (14, 16);
        let rows = layers.div_ceil(across);
        Self { named: false, across, tile, step, width: across * step + 8, height: rows * step + 8 }
    }

    fn tile_at(&self, layer: usize) -> (usize, usize) {
        (5 + layer % self.across * self.step, 5 + layer / self.across * self.step)
    }
}

fn picture(matrix: &Matrix, bands: &[Band]) -> Markup {
    let sizes = Sizes::new(matrix.layers.len(), bands.len());
    let longest = bands.iter().map(|band| band.label.chars().count()).max().unwrap_or(0);
    // Bold letters of 12.5 px are 7.5 px wide, or a little more; column names stand at 50 degrees where cells are narrow.
    let left = 24 + longest * 8;
    let top = if sizes.named { 30 } else { 22 + longest * 6 };
    let (width, height) = (left + bands.len() * (sizes.width + 4) + 60, top + bands.len() * (sizes.height + 4));
    html! {
        svg.grid viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) role="img" aria-labelledby="matrix-title" {
            title #matrix-title { "Isolation matrix: " (bands.len()) " rows and columns; the pairs that are not held by every layer are listed below" }
            @for (at, band) in bands.iter().enumerate() {
                @let (x, y) = (left + at * (sizes.width + 4), top + at * (sizes.height + 4));
                text.from x=(left - 10) y=(y + sizes.height / 2 + 4) text-anchor="end" { (band.label) (full(matrix, band)) }
                @if sizes.named {
                    text.to x=(x + 4) y=(top - 10) { (short(&band.label, 17)) (full(matrix, band)) }
                } @else {
                    text.to transform={ "translate(" (x + sizes.width / 2) " " (top - 8) ") rotate(-50)" } { (band.label) (full(matrix, band)) }
                }
            }
            @for (row, from) in bands.iter().enumerate() { @for (column, to) in bands.iter().enumerate() {
                (cell(matrix, &sizes, (from, to), (left + column * (sizes.width + 4), top + row * (sizes.height + 4))))
            } }
        }
    }
}

fn full(matrix: &Matrix, band: &Band) -> Markup {
    const NAMES: usize = 12;
    let names: Vec<_> = band.vms.iter().take(NAMES).map(|vm| plain(matrix.vms[*vm])).collect();
    let more = band.vms.len().saturating_sub(NAMES);
    html! { title { (names.join(", ")) @if more > 0 { " and " (more) " more" } } }
}

/// Two VMs that stand for all pairs of two bands; `None` for a VM and itself.
fn pair(from: &Band, to: &Band) -> Option<(usize, usize)> {
    match (from.vms[0], to.vms[0]) {
        (a, b) if a != b => Some((a, b)),
        (a, _) => from.vms.get(1).map(|b| (a, *b)),
    }
}

fn cell(matrix: &Matrix, sizes: &Sizes, (from, to): (&Band, &Band), (x, y): (usize, usize)) -> Markup {
    let Some((a, b)) = pair(from, to) else {
        return html! { rect.self x=(x) y=(y) width=(sizes.width) height=(sizes.height) rx="4" fill="url(#hatch)" { title { (plain(matrix.vms[from.vms[0]])) " itself" } } };
    };
    let standing = match matrix.standing(a, b) {
        Standing::All => "all",
        Standing::Unsure => "unsure",
        Standing::Some => "some",
        Standing::None => "nothing",
    };
    html! {
        g.cell.(standing) transform={ "translate(" (x) " " (y) ")" } {
            rect.frame width=(sizes.width) height=(sizes.height) rx="4" {}
            @for (at, layer) in matrix.layers.iter().enumerate() {
                @let (verdict, why) = matrix.says(a, b, layer);
                @let (tx, ty) = sizes.tile_at(at);
                g.t.{ "l" (at) }.(verdict_word(verdict)) {
                    title { (plain(matrix.vms[a])) " → " (plain(matrix.vms[b])) "\n" (plain(layer)) " " (holds(verdict)) ": " (plain(why)) }
                    use href={ "#i-t-" (verdict_word(verdict)) } x=(tx) y=(ty) width=(sizes.tile) height=(sizes.tile) {}
                    @if sizes.named { text x=(tx + 20) y=(ty + 11) { (short(layer, 13)) } }
                }
            }
        }
    }
}

fn holds(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "holds",
        Verdict::Fail => "does not hold",
        Verdict::Unknown => "is unknown",
        Verdict::Inapplicable => "is not there",
    }
}

fn legend(matrix: &Matrix, named: bool) -> Markup {
    let sizes = Sizes::new(matrix.layers.len(), NAMED + 1);
    html! {
        figcaption {
            @if !named {
                div.layout {
                    svg viewBox={ "0 0 " (sizes.width) " " (sizes.height) } width=(sizes.width * 2) height=(sizes.height * 2) aria-hidden="true" {
                        rect.frame width=(sizes.width) height=(sizes.height) rx="4" {}
                        @for at in 0..matrix.layers.len() {
                            @let (x, y) = sizes.tile_at(at);
                            rect.slot x=(x) y=(y) width=(sizes.tile) height=(sizes.tile) rx="2" {}
                            text.slot x=(x + sizes.tile / 2) y=(y + 10) text-anchor="middle" { (at + 1) }
                        }
                    }
                    ol { @for layer in &matrix.layers { li { (Text(layer)) } } }
                }
            }
            ul.key {
                li.pass { (icon("t-pass")) " the layer alone keeps the row's VM from the column's" }
                li.fail { (icon("t-fail")) " it does not" }
                li.unknown { (icon("t-unknown")) " it could not be looked at" }
                li.inapplicable { (icon("t-inapplicable")) " the host does not have it" }
            }
            p { "Hold the pointer over a symbol for the reason." }
        }
    }
}

/// Every pair as one dot; weak ones as runs along their row, so that 200 VMs take no more than what is wrong with them.
fn map(matrix: &Matrix) -> Markup {
    let n = matrix.vms.len();
    let dot = (560 / n).clamp(2, 8);
    html! {
        figure.map {
            svg viewBox={ "0 0 " (n * dot) " " (n * dot) } width=(n * dot) height=(n * dot) role="img" aria-labelledby="map-title" {
                title #map-title { "Map of all pairs of " (n) " VMs" }
                rect.pass width=(n * dot) height=(n * dot) {}
                path.diagonal d={ "M0 0L" (n * dot) " " (n * dot) } {}
                @for row in 0..n { @for (from, until, standing) in runs(matrix, row) {
                    @let class = match standing { Standing::None => "fail", Standing::Some => "high", _ => "unknown" };
                    rect.(class) x=(from * dot) y=(row * dot) width=((until - from) * dot) height=(dot) {
                        title { (plain(matrix.vms[row])) " → " (plain(matrix.vms[from])) @if until - from > 1 { " … " (plain(matrix.vms[until - 1])) } }
                    }
                    @if class != "high" { rect x=(from * dot) y=(row * dot) width=((until - from) * dot) height=(dot) fill={ "url(#p-" (class) ")" } pointer-events="none" {} }
                } }
            }
            figcaption { "All " (number(n * (n - 1))) " ordered pairs, rows and columns in the order of the subjects below. Only what is not held by every layer stands out." }
        }
    }
}

/// Stretches of a row with the same standing, but for those where all layers hold.
fn runs(matrix: &Matrix, row: usize) -> Vec<(usize, usize, Standing)> {
    let mut runs: Vec<(usize, usize, Standing)> = Vec::new();
    for column in (0..matrix.vms.len()).filter(|column| *column != row) {
        let standing = matrix.standing(row, column);
        match runs.last_mut() {
            _ if standing == Standing::All => {}
            Some((_, until, last)) if *until == column && *last == standing => *until += 1,
            _ => runs.push((column, column + 1, standing)),
        }
    }
    runs
}

fn members(matrix: &Matrix, bands: &[Band]) -> Markup {
    html! {
        details { summary { "Which VMs are in which group" }
            ol.members { @for band in bands { li { @for (at, vm) in band.vms.iter().enumerate() { @if at > 0 { ", " } (Text(matrix.vms[*vm])) } } } }
        }
    }
}

/// The picture in words: each pair (of VMs or groups) that is not held by every layer.
fn weak(matrix: &Matrix, bands: &[Band]) -> Markup {
    let pairs = bands.iter().flat_map(|from| bands.iter().map(move |to| (from, to)));
    let weak = pairs.filter(|(from, to)| pair(from, to).is_some_and(|(a, b)| matrix.standing(a, b) != Standing::All));
    let weak: Vec<_> = weak.collect();
    let left_out = weak.len().saturating_sub(LISTED);
    let name = |band: &Band| match band.vms.as_slice() {
        [vm] => html! { (Text(matrix.vms[*vm])) },
        _ => html! { "group " (band.label) },
    };
    html! { @if !weak.is_empty() {
        details open[weak.len() <= 8] {
            summary { (count(weak.len(), "ordered pair")) @if bands.len() < matrix.vms.len() { " of groups" } " not held by every layer" }
            div.scroll { table.stack {
                caption.unseen { "Pairs that are not held by every layer" }
                thead { tr { th scope="col" { "From" } th scope="col" { "To" } th scope="col" { "What does not hold" } } }
                tbody { @for (from, to) in weak.iter().take(LISTED) { @if let Some((a, b)) = pair(from, to) { tr {
                    th scope="row" data-l="From" { (name(from)) }
                    td data-l="To" { @if from.vms == to.vms { "each other" } @else { (name(to)) } }
                    td data-l="What does not hold" { ul.key { @for layer in &matrix.layers {
                        @let (verdict, why) = matrix.says(a, b, layer);
                        @if matches!(verdict, Verdict::Fail | Verdict::Unknown) { li.(verdict_word(verdict)) { (icon(verdict_word(verdict))) strong { (Text(layer)) } " " (Text(why)) } }
                    } } }
                } } } }
            } }
            @if left_out > 0 { p { (count(left_out, "further pair")) " in the JSON report." } }
        }
    } }
}
