//! Measurements, and what is said of them.

/// Measurements by contestant, in the order in which they came first.
pub struct ByName<T>(Vec<(String, T)>);

impl<T> Default for ByName<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Default> ByName<T> {
    pub fn entry(&mut self, name: &str) -> &mut T {
        let index = self.0.iter().position(|(present, _)| present == name).unwrap_or_else(|| {
            self.0.push((name.to_owned(), T::default()));
            self.0.len() - 1
        });
        &mut self.0[index].1
    }

    pub fn get(&self, name: &str) -> Option<&T> {
        self.iter().find(|(present, _)| *present == name).map(|(_, value)| value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Those of portsteer with rules by port. Their number makes no difference, so together they give the better
    /// figure.
    pub fn ours(&self) -> impl Iterator<Item = &T> {
        let is_ours = |name: &str| name.starts_with("portsteer") && !name.contains("mixed");
        self.iter().filter(move |(name, _)| is_ours(name)).map(|(_, value)| value)
    }
}

/// Puts two lists with one value per round together, round by round.
pub fn by_round(left: &[f64], right: &[f64], together: impl Fn(f64, f64) -> f64) -> Vec<f64> {
    left.iter().zip(right).map(|(&left, &right)| together(left, right)).collect()
}

/// The middle of a list, and of its halves. All zero if it is empty.
#[derive(Default)]
pub struct Spread {
    pub low: f64,
    pub median: f64,
    pub high: f64,
}

pub fn spread(values: &[f64]) -> Spread {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |quarter: usize| sorted.get(sorted.len() * quarter / 4).copied().unwrap_or_default();
    Spread { low: at(1), median: at(2), high: at(3) }
}

pub fn median(values: &[f64]) -> f64 {
    spread(values).median
}
