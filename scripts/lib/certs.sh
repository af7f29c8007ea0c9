#!/bin/sh
# Makes the test certificates: certs.sh DIR
#
#   ca.pem ca.key              the authority both sides trust
#   server.pem server.key      for localhost and the compose service names
#   client.pem client.key      for clients that identify themselves
#   other-ca.pem other-ca.key  an unrelated authority, for wrong-CA tests
#
# Certificates that are in place and valid for another month are kept. The
# container images run this file too, so it is plain sh and needs only openssl.
# The keys are their owner's alone. A server that runs as another user gets a
# copy of its own: see docker-compose.yml and rabbitmq.sh.
set -eu
umask 077

dir=${1:?usage: certs.sh DIR}
days=3650
month=2592000

valid() {
    for name in ca server client other-ca; do
        [ -s "$dir/$name.key" ] || return 1
        openssl x509 -checkend "$month" -noout -in "$dir/$name.pem" >/dev/null 2>&1 || return 1
    done
    for name in server client; do
        openssl verify -CAfile "$dir/ca.pem" "$dir/$name.pem" >/dev/null 2>&1 || return 1
    done
}

key() { # NAME: an unencrypted PKCS#8 key
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$1.key" 2>/dev/null
}

authority() { # NAME SUBJECT
    key "$1"
    openssl req -new -x509 -sha256 -days "$days" -key "$1.key" -out "$1.pem" \
        -config request.cnf -extensions authority -subj "$2"
}

leaf() { # NAME SUBJECT EXTENSIONS
    key "$1"
    openssl req -new -sha256 -key "$1.key" -out "$1.csr" -config request.cnf -subj "$2"
    openssl x509 -req -sha256 -days "$days" -in "$1.csr" -out "$1.pem" \
        -CA ca.pem -CAkey ca.key -set_serial "0x$(openssl rand -hex 8)" \
        -extfile request.cnf -extensions "$3" 2>/dev/null
    rm "$1.csr"
}

make_all() {
    cat >request.cnf <<'END'
[req]
distinguished_name = subject
prompt = no
[subject]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature, keyEncipherment
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost, DNS:kafka, DNS:rabbitmq, IP:127.0.0.1, IP:::1
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
END
    authority ca "/O=cqrs test/CN=cqrs test CA"
    authority other-ca "/O=cqrs test/CN=another test CA"
    leaf server "/O=cqrs test/CN=localhost" server
    leaf client "/O=cqrs test/CN=cqrs" client
    rm request.cnf
    # Kafka takes a PEM key store as one file: the key, then its certificate.
    cat server.key server.pem >server-keystore.pem
}

private() { # those of earlier versions were readable
    chmod 644 "$dir"/*.pem
    chmod 600 "$dir"/*.key "$dir/server-keystore.pem"
}

if valid; then
    private
    exit 0
fi
mkdir -p "$dir"
work=$(mktemp -d "$dir/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
(cd "$work" && make_all)
mv "$work"/*.pem "$work"/*.key "$dir"
private
chmod 755 "$dir"
