//! Samples and their percentiles.

/// Times of one measurement, sorted.
#[derive(Debug)]
pub struct Samples {
    sorted_ns: Vec<u64>,
}

impl Samples {
    /// Takes times in nanoseconds, in any order.
    pub fn from_ns(mut times_ns: Vec<u64>) -> Self {
        times_ns.sort_unstable();
        Self { sorted_ns: times_ns }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sorted_ns.len()
    }

    /// The nearest-rank percentile in microseconds; 0 when there are no samples.
    pub fn percentile_us(&self, percent: usize) -> f64 {
        let rank = (self.sorted_ns.len() * percent).div_ceil(100).max(1);
        self.sorted_ns.get(rank - 1).map_or(0.0, |ns| *ns as f64 / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        let samples = Samples::from_ns((1..=100).rev().map(|us| us * 1000).collect());
        assert_eq!(samples.percentile_us(50), 50.0);
        assert_eq!(samples.percentile_us(99), 99.0);
        assert_eq!(samples.percentile_us(100), 100.0);
        assert_eq!(Samples::from_ns(vec![]).percentile_us(50), 0.0);
        assert_eq!(Samples::from_ns(vec![7000]).percentile_us(99), 7.0);
    }
}
