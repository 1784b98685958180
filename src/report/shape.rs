//! Where molecules are between rod, disc and sphere.

use super::svg::{Anchor, GRID, INK, LABEL, Svg, TICK, TITLE};

const SIZE: [f64; 2] = [640.0, 420.0];
const ORIGIN: [f64; 2] = [80.0, 350.0];
const SCALE: [f64; 2] = [500.0, 540.0];
/// Cells along NPR1; a cell of NPR2 is half as high, since the triangle is.
const CELLS: usize = 100;

/// A map of normalised principal moments (NPR1, NPR2): the darker a cell, the more molecules (logarithmic).
pub fn npr_plot(title: &str, points: &[[f64; 2]]) -> String {
    let at = |p: [f64; 2]| (ORIGIN[0] + SCALE[0] * p[0], ORIGIN[1] - SCALE[1] * (p[1] - 0.5));
    let mut counts = vec![0u32; CELLS * CELLS];
    let cell = |x: f64| ((x * CELLS as f64) as usize).min(CELLS - 1);
    for p in points.iter().filter(|p| p.iter().all(|x| x.is_finite())) {
        counts[cell(2.0 * (p[1] - 0.5).max(0.0)) * CELLS + cell(p[0].max(0.0))] += 1;
    }
    let most = f64::from(counts.iter().copied().max().unwrap_or(0)).max(1.0);
    let mut svg = Svg::new(SIZE[0], SIZE[1]);
    svg.text((ORIGIN[0], 28.0), Anchor::Start, TITLE, title);
    for k in 0..=5 {
        let (x, y) = (0.2 * f64::from(k), 0.5 + 0.1 * f64::from(k));
        svg.line(at([x, 0.5]), at([x, 1.0]), GRID);
        svg.line(at([0.0, y]), at([1.0, y]), GRID);
        svg.text((at([x, 0.5]).0, ORIGIN[1] + 19.0), Anchor::Middle, TICK, &format!("{x:.1}"));
        svg.text((ORIGIN[0] - 8.0, at([0.0, y]).1 + 4.0), Anchor::End, TICK, &format!("{y:.1}"));
    }
    svg.open_cells();
    let (width, height) = (SCALE[0] / CELLS as f64, SCALE[1] / (2 * CELLS) as f64);
    for (k, &count) in counts.iter().enumerate().filter(|c| *c.1 > 0) {
        let depth = 0.25 + 0.75 * (1.0 + f64::from(count)).ln() / (1.0 + most).ln();
        let mix = |ink: f64| (255.0 + (ink - 255.0) * depth) as u8;
        let corner = at([(k % CELLS) as f64 / CELLS as f64, 0.5 + (k / CELLS + 1) as f64 / (2 * CELLS) as f64]);
        svg.rect(corner.0, corner.1, width, height, &format!("#{:02x}{:02x}{:02x}", mix(0.0), mix(114.0), mix(178.0)));
    }
    svg.close_cells();
    for (a, b) in [([0.0, 1.0], [0.5, 0.5]), ([0.5, 0.5], [1.0, 1.0]), ([1.0, 1.0], [0.0, 1.0])] {
        svg.line(at(a), at(b), INK);
    }
    svg.text((at([0.0, 1.0]).0 + 4.0, at([0.0, 1.0]).1 - 7.0), Anchor::Start, LABEL, "rod");
    svg.text((at([1.0, 1.0]).0, at([1.0, 1.0]).1 - 7.0), Anchor::End, LABEL, "sphere");
    svg.text((at([0.5, 0.5]).0, ORIGIN[1] - 8.0 + 46.0), Anchor::Middle, LABEL, "disc; NPR1 = I₁/I₃");
    svg.text_upwards((22.0, at([0.0, 0.75]).1), LABEL, "NPR2 = I₂/I₃");
    svg.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_is_drawn_once() {
        let cells = |points: &[[f64; 2]]| npr_plot("a <title>", points).matches("<rect").count();
        let empty = cells(&[]);
        assert_eq!(cells(&[[0.0, 1.0], [0.001, 1.0], [1.0, 1.0], [0.5, 0.5], [f64::NAN, 0.5]]), empty + 3);
        assert!(npr_plot("a <title>", &[]).contains("a &lt;title&gt;"));
    }
}
