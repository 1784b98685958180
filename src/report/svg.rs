//! A picture as SVG text: a few shapes, in pixels from the upper left corner. Text is left to the viewer's fonts, so that
//! no font library is needed.

use std::fmt::Write;

/// Where a text's position lies along it.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// Size and weight of text.
#[derive(Clone, Copy)]
pub(super) struct Font {
    pub(super) size: f64,
    pub(super) bold: bool,
    pub(super) colour: &'static str,
}

pub(super) const TITLE: Font = Font { size: 16.0, bold: true, colour: INK };
pub(super) const LABEL: Font = Font { size: 13.0, bold: false, colour: INK };
pub(super) const TICK: Font = Font { size: 12.0, bold: false, colour: "#4d4d4d" };
/// Colour of text and axes.
pub(super) const INK: &str = "#1a1a1a";
/// Colour of grid lines.
pub(super) const GRID: &str = "#e3e3e3";

pub(super) struct Svg {
    text: String,
}

impl Svg {
    /// A white page.
    pub(super) fn new(width: f64, height: f64) -> Self {
        let mut svg = Svg { text: String::new() };
        svg.push(format_args!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif">"#
        ));
        svg.rect(0.0, 0.0, width, height, "#ffffff");
        svg
    }

    fn push(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    pub(super) fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str) {
        self.push(format_args!(r#"<rect x="{}" y="{}" width="{}" height="{}" fill="{fill}"/>"#, Px(x), Px(y), Px(width), Px(height)));
    }

    /// A filled shape of whole cells, in the language of SVG paths.
    pub(super) fn path(&mut self, d: &str, fill: &str) {
        self.push(format_args!(r#"<path d="{d}" fill="{fill}"/>"#));
    }

    /// A dot with a white rim.
    pub(super) fn dot(&mut self, at: (f64, f64), radius: f64, fill: &str) {
        self.push(format_args!(r##"<circle cx="{}" cy="{}" r="{radius}" fill="{fill}" stroke="#ffffff"/>"##, Px(at.0), Px(at.1)));
    }

    /// An empty frame.
    pub(super) fn frame(&mut self, x: f64, y: f64, width: f64, height: f64, stroke: &str, dashes: &str) {
        self.push(format_args!(
            r#"<rect x="{}" y="{}" width="{}" height="{}" fill="none" stroke="{stroke}" stroke-dasharray="{dashes}"/>"#,
            Px(x),
            Px(y),
            Px(width),
            Px(height)
        ));
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str) {
        self.push(format_args!(r#"<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{stroke}"/>"#, Px(from.0), Px(from.1), Px(to.0), Px(to.1)));
    }

    /// A curve through `points`.
    pub(super) fn curve(&mut self, points: &[(f64, f64)], stroke: &str) {
        let points = join(points);
        self.push(format_args!(
            r#"<polyline points="{points}" fill="none" stroke="{stroke}" stroke-width="1.6" stroke-linejoin="round" stroke-linecap="round"/>"#
        ));
    }

    /// A translucent area.
    pub(super) fn area(&mut self, points: &[(f64, f64)], fill: &str) {
        let points = join(points);
        self.push(format_args!(r#"<polygon points="{points}" fill="{fill}" fill-opacity="0.2"/>"#));
    }

    pub(super) fn text(&mut self, at: (f64, f64), anchor: Anchor, font: Font, text: &str) {
        self.write(at, anchor, font, "", text);
    }

    /// Text that reads upwards.
    pub(super) fn text_upwards(&mut self, at: (f64, f64), font: Font, text: &str) {
        let turn = format!(r#" transform="rotate(-90 {} {})""#, Px(at.0), Px(at.1));
        self.write(at, Anchor::Middle, font, &turn, text);
    }

    /// Text with a white rim, readable on any colour.
    pub(super) fn text_on_map(&mut self, at: (f64, f64), font: Font, text: &str) {
        // Rim and letters apart: not every viewer knows `paint-order`.
        let rim = r##" stroke="#ffffff" stroke-width="3" stroke-opacity="0.8" stroke-linejoin="round""##;
        self.write(at, Anchor::Start, font, rim, text);
        self.write(at, Anchor::Start, font, "", text);
    }

    fn write(&mut self, (x, y): (f64, f64), anchor: Anchor, font: Font, extra: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let weight = if font.bold { r#" font-weight="bold""# } else { "" };
        let text = escape(text);
        self.push(format_args!(
            r#"<text x="{}" y="{}" text-anchor="{anchor}" font-size="{}"{weight} fill="{}"{extra}>{text}</text>"#,
            Px(x),
            Px(y),
            font.size,
            font.colour
        ));
    }

    /// Opens a group of cells whose edges are not smoothed, so that neighbours leave no seam.
    pub(super) fn open_cells(&mut self) {
        self.push(format_args!(r#"<g shape-rendering="crispEdges">"#));
    }

    pub(super) fn close_cells(&mut self) {
        self.push(format_args!("</g>"));
    }

    pub(super) fn finish(mut self) -> String {
        self.push(format_args!("</svg>"));
        self.text
    }
}

fn join(points: &[(f64, f64)]) -> String {
    let mut text = String::with_capacity(12 * points.len());
    for (i, (x, y)) in points.iter().enumerate() {
        let _ = write!(text, "{}{},{}", if i == 0 { "" } else { " " }, Px(*x), Px(*y));
    }
    text
}

/// Pixels, to a hundredth.
struct Px(f64);

impl std::fmt::Display for Px {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hundredths = (self.0 * 100.0).round();
        if hundredths % 100.0 == 0.0 { write!(f, "{}", hundredths / 100.0) } else { write!(f, "{:.2}", hundredths / 100.0) }
    }
}

/// Names come from files: markup must not leave the text, and XML has no control characters.
pub(super) fn escape(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .map(|c| match c {
            '<' => "&lt;".to_owned(),
            '>' => "&gt;".to_owned(),
            '&' => "&amp;".to_owned(),
            '"' => "&quot;".to_owned(),
            c => c.to_string(),
        })
        .collect()
}

/// Round numbers that divide `low..high` into about `count` steps, and the number of decimals they need.
pub(super) fn ticks(low: f64, high: f64, count: usize) -> (Vec<f64>, usize) {
    let raw = (high - low) / count.max(1) as f64;
    if !(raw > 0.0 && raw.is_finite()) {
        return (vec![low], 3);
    }
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].iter().map(|m| m * power).find(|s| *s >= 0.7 * raw).unwrap_or(10.0 * power);
    let first = (low / step - 1e-9).ceil();
    let values = (0..).map(|i| (first + f64::from(i)) * step).take_while(|v| *v <= high + 1e-9 * step).take(100).collect();
    let decimals = (0..12).find(|d| ((step * 10f64.powi(*d)).round() - step * 10f64.powi(*d)).abs() < 1e-6 * step * 10f64.powi(*d));
    (values, decimals.unwrap_or(12) as usize)
}

/// A number for people: a true minus sign, powers of ten where plain digits would be long.
pub(super) fn number(value: f64, decimals: usize) -> String {
    let text = if value != 0.0 && (value.abs() >= 1e6 || value.abs() < 1e-4) {
        format!("{value:.3e}")
    } else if value == 0.0 {
        format!("{:.decimals$}", 0.0)
    } else {
        format!("{value:.decimals$}")
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 10.0, 5), (vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 0));
        assert_eq!(ticks(-0.11, 0.32, 4).0.len(), 5);
        assert_eq!(ticks(0.0, 1.0, 4).1, 1);
        assert_eq!(ticks(0.0, 1.0, 4).0.len(), 6);
        assert_eq!(ticks(5.0, 5.0, 4).0, [5.0]);
        assert_eq!(ticks(f64::NAN, 5.0, 4).0.len(), 1);
    }

    #[test]
    fn names_from_files_stay_text() {
        let mut svg = Svg::new(10.0, 10.0);
        svg.text((0.0, 0.0), Anchor::Start, LABEL, "<script>&\"\u{7}");
        let text = svg.finish();
        assert!(text.contains("&lt;script&gt;&amp;&quot;</text>") && !text.contains('\u{7}'));
        assert_eq!(text.matches("<text").count(), text.matches("</text>").count());
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
    }
}
