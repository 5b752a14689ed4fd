//! A certificate that two programs share for one purpose: each shows it to the other, and takes no
//! other one. Who has its key may connect, so the key goes over a connection that is protected
//! already.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};

/// The name in the certificate. Nobody looks it up: the whole certificate is compared.
const SHARED_NAME: &str = "shared.patina.invalid";

/// A certificate that is signed by its own key, and that key.
pub struct SharedCertificate {
    /// The certificate, in DER.
    pub certificate: Vec<u8>,
    /// The private key, in PKCS #8.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for SharedCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedCertificate").finish_non_exhaustive()
    }
}

impl SharedCertificate {
    /// A new one, with an ECDSA key on the curve P-256.
    ///
    /// # Errors
    /// There is no randomness.
    pub fn new() -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let certificate = CertificateParams::new([SHARED_NAME.to_owned()])?.self_signed(&key)?;
        Ok(Self { certificate: certificate.der().to_vec(), key: key.serialize_der() })
    }
}
