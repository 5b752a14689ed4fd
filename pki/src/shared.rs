//! A certificate that two pagers share: each shows it to the other, and takes no other one. Who has
//! its key may connect, so the key goes over a connection that is protected already.

use patina_control::pager::Credential;
use rcgen::{CertificateParams, Error, KeyPair, PKCS_ECDSA_P256_SHA256};

/// The name in the certificate. Nobody looks it up: the whole certificate is compared.
const SHARED_NAME: &str = "shared.patina.invalid";

/// A new certificate, signed by its own key, and that key: ECDSA on the curve P-256.
///
/// # Errors
/// There is no randomness.
pub fn credential() -> Result<Credential, Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = CertificateParams::new([SHARED_NAME.to_owned()])?.self_signed(&key)?;
    Ok(Credential { certificate: certificate.der().to_vec(), key: key.serialize_der() })
}
