//! Quantiles, medians and spread.

use serde::{Deserialize, Serialize};

/// What remains of many values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// How many there were.
    pub count: usize,
    /// The middle one.
    pub median: f64,
    /// The median of their distances from the median.
    pub mad: f64,
    /// The smallest.
    pub least: f64,
    /// The greatest.
    pub most: f64,
}

impl Summary {
    /// The summary of these values; `None` of none.
    pub fn of(values: &[f64]) -> Option<Summary> {
        let sorted = sorted(values);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let median = quantile(&sorted, 0.5)?;
        let distances: Vec<f64> = sorted.iter().map(|value| (value - median).abs()).collect();
        let mad = quantile(&self::sorted(&distances), 0.5)?;
        Some(Summary { count: sorted.len(), median, mad, least, most })
    }

    /// The median distance from the median, as a part of the median; 0 where that is 0.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { self.mad / self.median.abs() }
    }
}

/// The values from the smallest to the greatest.
pub fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

/// The value below which this part (0 to 1) of sorted values lies, interpolated between neighbours; `None` of none.
pub fn quantile(sorted: &[f64], part: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let at = part.clamp(0.0, 1.0) * last as f64;
    let below = at.floor();
    let (low, high) = (sorted.get(below as usize)?, sorted.get(at.ceil() as usize)?);
    Some(low + (high - low) * (at - below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 0.5), Some(3.0));
        assert_eq!(quantile(&values, 1.0), Some(5.0));
        assert_eq!(quantile(&values, 0.9), Some(4.6));
        assert_eq!(quantile(&[7.0], 0.99), Some(7.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!((quantile(&values, -1.0), quantile(&values, 2.0)), (Some(1.0), Some(5.0)));
    }

    #[test]
    fn one_wild_value_moves_neither_median_nor_spread_far() {
        let calm = Summary::of(&[10.0, 11.0, 9.0, 10.0, 10.5]).unwrap();
        let wild = Summary::of(&[10.0, 11.0, 9.0, 10.0, 1000.0]).unwrap();
        assert_eq!((calm.median, calm.mad), (10.0, 0.5));
        assert_eq!((wild.median, wild.mad, wild.least, wild.most, wild.count), (10.0, 1.0, 9.0, 1000.0, 5));
        assert_eq!(wild.spread(), 0.1);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[0.0, 0.0]).unwrap().spread(), 0.0);
    }
}
