"""The names in a client's certificate, which TLS has verified. cryptography is imported for the first one."""

from functools import lru_cache

PEER_CERTIFICATE = "convoy.peer_certificate"
"""The key in a request's environment for the client's certificate, DER; absent if it showed none."""


@lru_cache(maxsize=1024)
def certificate_names(der: bytes) -> tuple[str, ...]:
    """The subject's common names, then the alternative names: DNS, URI, email, IP. As gRPC gives them for its own connections."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    certificate = x509.load_der_x509_certificate(der)
    names = [str(attribute.value) for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return tuple(names)
    for kind in (x509.DNSName, x509.UniformResourceIdentifier, x509.RFC822Name, x509.IPAddress):
        names += [str(name) for name in alternative.get_values_for_type(kind)]
    return tuple(names)
