//! What there is, for those who read the metrics.

use super::{Engine, Refusal};

impl Engine {
    /// What is counted, and what the ledger and the hosts have now, as Prometheus reads it.
    ///
    /// # Errors
    /// The ledger cannot be asked.
    pub async fn metrics_text(&self) -> Result<String, Refusal> {
        let (counts, hosts) = (self.counts().await?, self.hosts().await?);
        Ok(self.shared.metrics.text(&counts, &hosts))
    }
}
