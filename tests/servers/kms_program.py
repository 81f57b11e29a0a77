"""AWS KMS for tests: moto over HTTP, as strict as AWS where moto is laxer. A process that kms.py starts.

What differs from moto's own server:

* Every request to KMS must be signed by a known user, whose IAM policies are evaluated with the key's ARN as the
  resource and the encryption context as a condition. IAM itself is open, for the tests make users there.
* A key that is disabled, pending deletion or of another use does not encrypt or decrypt.
* The encryption context is authenticated without ambiguity, and a changed blob is InvalidCiphertextException.
* Decrypt with the id of another key is IncorrectKeyException. ARNs of another region or account are not found.
* Multi-region keys decrypt. RotateKeyOnDemand makes new key material and keeps the old.
* Sign and Verify take a digest as one, a PSS salt is as long as the hash, a wrong signature is
  KMSInvalidSignatureException. GetPublicKey states an ARN, and the kind of key.
* Automatic rotation has a period and a next date, and is for symmetric keys alone. What needs the id of a key takes no
  alias. Lists come in pages, to which markers lead.
* POST /_faults takes a list of rules {"action": name or null, "code": …, "message": …, "status": 400, "delay": 0,
  "times": number or null}: a request that one matches waits, and fails where there is a code. GET /_calls lists
  the requests to KMS (action, user, and their parameters without secrets), DELETE /_calls forgets them.

Not as at AWS: the layout of blobs, quotas, and the time until a change is seen everywhere.
"""

import base64
import fnmatch
import hashlib
import json
import os
import sys
import threading
import time

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from moto.core.exceptions import JsonRESTError
from moto.iam.access_control import IAMPolicy, IAMRequest
from moto.kms import models, responses
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


def fail(code, message="", status=400):
    error = JsonRESTError(code, message)
    error.code = status
    raise error


# Keys


def make_key(self, *args, **kwargs):
    make_key_of_moto(self, *args, **kwargs)
    self.materials = [self.key_material]  # one list with its replicas
    self.rotation_days = self.rotation_since = None


def check_usable(key):
    if key.key_usage not in (None, "ENCRYPT_DECRYPT") or key.key_spec != "SYMMETRIC_DEFAULT":
        fail("InvalidKeyUsageException", f"{key.arn} key usage is {key.key_usage}.")
    check_enabled(key)


def check_enabled(key):
    if key.key_state == "Disabled":
        fail("DisabledException", f"{key.arn} is disabled.")
    if key.key_state != "Enabled":
        fail("KMSInvalidStateException", f"{key.arn} is pending deletion.")


def associated_data(key_id, context):
    return json.dumps([key_id, sorted((context or {}).items())]).encode()


def encrypt(master_keys, key_id, plaintext, encryption_context):
    key = master_keys[key_id]
    check_usable(key)
    if not 1 <= len(plaintext) <= 4096:
        fail("ValidationException", "1 validation error detected: Value at 'plaintext'")
    version, nonce = len(key.materials) - 1, os.urandom(12)
    head = bytes([len(key_id)]) + key_id.encode() + version.to_bytes(2, "big") + nonce
    bound = associated_data(key_id, encryption_context)
    return head + AESGCM(key.materials[version]).encrypt(nonce, plaintext, bound)


def split_blob(blob):
    """Return a blob's key id, version, nonce and ciphertext."""
    size = blob[0] if blob else 0
    rest = blob[1 + size :]
    key_id = blob[1 : 1 + size].decode(errors="replace")
    return key_id, int.from_bytes(rest[:2], "big"), rest[2:14], rest[14:]


def decrypt(self, ciphertext_blob, encryption_context, key_id=None):
    found, version, nonce, sealed = split_blob(ciphertext_blob)
    key = self.keys.get(found)
    if key is None or version >= len(key.materials) or len(nonce) != 12:
        fail("InvalidCiphertextException")
    if key_id is not None and self.any_id_to_key_id(key_id) != found:
        fail("IncorrectKeyException", "The key ID in the request does not identify the key.")
    check_usable(key)
    bound = associated_data(found, encryption_context)
    try:
        return AESGCM(key.materials[version]).decrypt(nonce, sealed, bound), key.arn
    except InvalidTag:
        fail("InvalidCiphertextException")


def rotate_key_on_demand(self, key_id):
    key = self.keys[self.get_key_id(key_id)]
    check_rotates(key)
    check_enabled(key)
    if len(key.rotations) >= MAX_ROTATIONS:
        fail("LimitExceededException", "The key was rotated on demand too often.")
    key.materials.append(os.urandom(32))
    key.rotations.append(
        {"KeyId": key.arn, "RotationDate": time.time(), "RotationType": "ON_DEMAND"}
    )
    return key.id


MAX_ROTATIONS = 25


def check_rotates(key):
    if key.key_spec != "SYMMETRIC_DEFAULT":
        fail("UnsupportedOperationException", f"{key.arn} does not rotate.")


# Signatures

HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def scheme(key, parameters):
    """Return the message, its hash and the padding of a request that signs or verifies."""
    if key.key_usage != "SIGN_VERIFY":
        fail("InvalidKeyUsageException", f"{key.arn} key usage is {key.key_usage}.")
    check_enabled(key)
    algorithm, kind = parameters["SigningAlgorithm"], parameters.get("MessageType", "RAW")
    if algorithm not in key.signing_algorithms:
        fail("InvalidKeyUsageException", f"Algorithm {algorithm} is incompatible with {key.arn}.")
    message, hashed = base64.b64decode(parameters["Message"]), HASHES[algorithm[-3:]]
    if not 1 <= len(message) <= 4096:
        fail("ValidationException", "1 validation error detected: Value at 'message'")
    if kind == "DIGEST":
        if len(message) != hashed.digest_size:
            fail("ValidationException", "Digest is invalid length for algorithm.")
        hashed = Prehashed(hashed)
    if algorithm.startswith("ECDSA"):
        return message, [ec.ECDSA(hashed)]
    if algorithm.startswith("RSASSA_PSS"):
        plain = HASHES[algorithm[-3:]]
        return message, [padding.PSS(padding.MGF1(plain), plain.digest_size), hashed]
    return message, [padding.PKCS1v15(), hashed]


def key_of(self, parameters):
    self._validate_key_id(parameters["KeyId"])
    return self.kms_backend.keys[self.kms_backend.any_id_to_key_id(parameters["KeyId"])]


def sign(self):
    parameters = json.loads(self.raw_body)
    key = key_of(self, parameters)
    message, arguments = scheme(key, parameters)
    signature = base64.b64encode(key.private_key.private_key.sign(message, *arguments)).decode()
    algorithm = parameters["SigningAlgorithm"]
    return json.dumps({"KeyId": key.arn, "Signature": signature, "SigningAlgorithm": algorithm})


def verify(self):
    parameters = json.loads(self.raw_body)
    key = key_of(self, parameters)
    message, arguments = scheme(key, parameters)
    signature = base64.b64decode(parameters["Signature"])
    try:
        key.private_key.private_key.public_key().verify(signature, message, *arguments)
    except InvalidSignature:
        fail("KMSInvalidSignatureException")
    algorithm = parameters["SigningAlgorithm"]
    return json.dumps({"KeyId": key.arn, "SignatureValid": True, "SigningAlgorithm": algorithm})


def get_public_key(self):
    key = key_of(self, json.loads(self.raw_body))
    if key.key_spec == "SYMMETRIC_DEFAULT" or key.key_spec.startswith("HMAC"):
        fail("UnsupportedOperationException", f"{key.arn} has no public key.")
    check_enabled(key)
    return json.dumps(
        {
            "KeyId": key.arn,
            "PublicKey": base64.b64encode(key.private_key.public_key()).decode(),
            "KeySpec": key.key_spec,
            "CustomerMasterKeySpec": key.key_spec,
            "KeyUsage": key.key_usage,
            "EncryptionAlgorithms": key.encryption_algorithms,
            "SigningAlgorithms": key.signing_algorithms,
        }
    )


# Rotation and lists

DAY = 86400


def rotating_key(self):
    parameters = json.loads(self.raw_body)
    self._validate_cmk_id(parameters["KeyId"])
    key = key_of(self, parameters)
    check_rotates(key)
    if key.key_state == "PendingDeletion":
        fail("KMSInvalidStateException", f"{key.arn} is pending deletion.")
    return key, parameters


def enable_key_rotation(self):
    key, parameters = rotating_key(self)
    check_enabled(key)
    days = parameters.get("RotationPeriodInDays", 365)
    if not 90 <= days <= 2560:
        fail("ValidationException", "1 validation error detected: Value at 'rotationPeriodInDays'")
    key.key_rotation_status, key.rotation_days, key.rotation_since = True, days, time.time()


def disable_key_rotation(self):
    key, _ = rotating_key(self)
    check_enabled(key)
    key.key_rotation_status = False


def get_key_rotation_status(self):
    key, _ = rotating_key(self)
    status = {"KeyId": key.arn, "KeyRotationEnabled": key.key_rotation_status}
    if key.key_rotation_status:
        status["RotationPeriodInDays"] = key.rotation_days
        status["NextRotationDate"] = key.rotation_since + key.rotation_days * DAY
    return json.dumps(status)


def page(self, member, entries):
    """Return the page of a list that a request asks for."""
    parameters = json.loads(self.raw_body)
    start = int(parameters.get("Marker", "0").removeprefix("from-"))
    stop = start + parameters.get("Limit", 100)
    answer = {member: entries[start:stop], "Truncated": stop < len(entries)}
    if answer["Truncated"]:
        answer["NextMarker"] = f"from-{stop}"
    return json.dumps(answer)


def list_keys(self):
    keys = list(self.kms_backend.list_keys())
    return page(self, "Keys", [{"KeyArn": key.arn, "KeyId": key.id} for key in keys])


def list_aliases(self):
    return page(self, "Aliases", json.loads(list_aliases_of_moto(self))["Aliases"])


def list_key_rotations(self):
    key, _ = rotating_key(self)
    return page(self, "Rotations", key.rotations)


def rotate_on_demand(self):
    key, _ = rotating_key(self)
    return json.dumps({"KeyId": self.kms_backend.rotate_key_on_demand(key.id)})


def validate_key_id(self, key_id):
    here = f":{self.region}:{self.current_account}:"
    if key_id.startswith("arn:") and here not in key_id:
        fail("NotFoundException", f"Key '{key_id}' does not exist")
    validate_key_id_of_moto(self, key_id)


def answering_nothing(method):
    """Let an operation that gives nothing have an empty body."""

    def answer(self):
        method(self)
        return ""

    return answer


def taking_arns(method):
    """Let a method of moto's that wants the id of a key take its ARN too."""
    return lambda self, key_id, *args: method(self, self.get_key_id(key_id), *args)


def generate_private_key(key_spec):
    # For a symmetric key moto would generate one of RSA too, which takes longer than most tests.
    return generate_private_key_of_moto(key_spec) if key_spec.startswith(("RSA", "ECC")) else None


generate_private_key_of_moto = models.generate_private_key
models.generate_private_key = generate_private_key
make_key_of_moto = models.Key.__init__
models.Key.__init__ = make_key
models.encrypt = encrypt
models.KmsBackend.decrypt = decrypt
models.KmsBackend.rotate_key_on_demand = rotate_key_on_demand
for name in (
    "cancel_key_deletion",
    "disable_key",
    "enable_key",
    "replicate_key",
    "schedule_key_deletion",
):
    setattr(models.KmsBackend, name, taking_arns(getattr(models.KmsBackend, name)))


def with_no_body(method):
    """Let a method of moto's whose answer has nothing in it answer with an empty body, as AWS does, not with `null`."""
    return lambda self: "" if (answer := method(self)) == "null" else answer


for name in ("create_alias", "disable_key", "enable_key", "update_alias"):
    setattr(responses.KmsResponse, name, with_no_body(getattr(responses.KmsResponse, name)))
list_aliases_of_moto = responses.KmsResponse.list_aliases
for function in (
    sign,
    verify,
    get_public_key,
    enable_key_rotation,
    disable_key_rotation,
    get_key_rotation_status,
    list_keys,
    list_aliases,
    list_key_rotations,
):
    setattr(responses.KmsResponse, function.__name__, function)
responses.KmsResponse.rotate_key_on_demand = rotate_on_demand
for name in (
    "create_alias",
    "delete_alias",
    "disable_key",
    "disable_key_rotation",
    "enable_key",
    "enable_key_rotation",
    "update_alias",
):
    method = getattr(responses.KmsResponse, name)
    setattr(responses.KmsResponse, name, answering_nothing(method))
validate_key_id_of_moto = responses.KmsResponse._validate_key_id
responses.KmsResponse._validate_key_id = validate_key_id


# Who may do what

CALLS = []


def authorize(self, resource="*"):
    """Check the signature of a request to KMS, and the policies of who signed it."""
    action = self._get_action()
    if "Authorization" not in self.headers:
        fail("MissingAuthenticationTokenException", "The request has no signature.")
    stated = self.headers.get("X-Amz-Content-Sha256")
    if stated is not None and stated != hashlib.sha256(self.raw_body).hexdigest():
        fail("InvalidSignatureException", "The body is not the one that was signed.")
    request = Request(
        account_id=self.current_account,
        method=self.method,
        path=self.raw_path,
        data=self.data,
        body=self.raw_body,
        headers=self.headers,
        action=action,
    )
    request.check_signature()
    parameters = json.loads(self.raw_body)
    shown = {name: value for name, value in parameters.items() if name != "Plaintext"}
    CALLS.append({"action": action, "user": request.user, **shown})
    backend = self.kms_backend
    key_id = parameters.get("KeyId") or split_blob(self._get_param("CiphertextBlob", b""))[0]
    if "alias/" in key_id:
        key_id = backend.get_key_id_from_alias(backend.get_alias_name(key_id)) or ""
    key = backend.keys.get(backend.get_key_id(key_id))
    request.check(key.arn if key else "*", parameters.get("EncryptionContext") or {})


class Request(IAMRequest):
    @property
    def user(self):
        return self._access_key.arn

    def check(self, resource, context):
        verdicts = set()
        for policy in self._access_key.collect_policies():
            statements = IAMPolicy(policy)._policy_json["Statement"]
            for statement in statements if isinstance(statements, list) else [statements]:
                if applies(statement, self._action, resource, context):
                    verdicts.add(statement["Effect"])
        if verdicts != {"Allow"}:
            fail(
                "AccessDeniedException",
                f"User: {self.user} is not authorized to perform: {self._action} on resource: "
                f"{resource} because no identity-based policy allows the {self._action} action",
            )

    def _raise_signature_does_not_match(self):
        fail("InvalidSignatureException", "The request signature does not match.")

    def _raise_invalid_access_key(self, reason):
        fail("UnrecognizedClientException", "The security token in the request is invalid.")


def matches(patterns, value):
    return any(fnmatch.fnmatchcase(value, each) for each in as_list(patterns))


def as_list(value):
    return value if isinstance(value, list) else [value]


def applies(statement, action, resource, context):
    return (
        matches(statement["Action"], action)
        and matches(statement["Resource"], resource)
        and all(
            holds(operator, name, as_list(wanted), context)
            for operator, tests in statement.get("Condition", {}).items()
            for name, wanted in tests.items()
        )
    )


def holds(operator, name, wanted, context):
    """Evaluate the conditions that the documentation's policies use."""
    if name == "kms:EncryptionContextKeys":
        found = list(context)
    elif name.startswith("kms:EncryptionContext:"):
        found = [context[each] for each in (name.split(":", 2)[2],) if each in context]
    else:
        raise NotImplementedError(name)
    if operator == "StringEquals":
        return len(found) == 1 and found[0] in wanted
    if operator == "ForAllValues:StringEquals":
        return all(each in wanted for each in found)
    raise NotImplementedError(operator)


responses.KmsResponse._authenticate_and_authorize_normal_action = authorize


# The server

FAULTS = []
LOCK = threading.Lock()


def take_fault(action):
    with LOCK:
        for fault in FAULTS:
            if fault.get("action") in (None, action) and fault.get("times") != 0:
                if fault.get("times") is not None:
                    fault["times"] -= 1
                return fault
    return {}


def make_app():
    moto = DomainDispatcherApplication(create_backend_app)

    def app(environ, start_response):
        def answer(status, content=None):
            body = b"" if content is None else json.dumps(content).encode()
            headers = [("Content-Type", "application/x-amz-json-1.1")]
            start_response(f"{status} X", [*headers, ("Content-Length", str(len(body)))])
            return [body]

        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/_faults":
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            with LOCK:
                FAULTS[:] = json.loads(body)
            return answer(200)
        if path == "/_calls":
            calls = list(CALLS)
            if method == "DELETE":
                CALLS.clear()
            return answer(200, calls)
        service, _, action = environ.get("HTTP_X_AMZ_TARGET", "").partition(".")
        fault = take_fault(action) if service == "TrentService" else {}
        time.sleep(fault.get("delay", 0))
        if "code" in fault:
            content = {"__type": fault["code"], "message": fault.get("message", "")}
            return answer(fault.get("status", 400), content)
        return moto(environ, start_response)

    return app


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *_):
        pass


def main():
    # Certificate and key may follow; with them it speaks TLS.
    tls = tuple(sys.argv[1:]) or None
    server = make_server(
        "127.0.0.1", 0, make_app(), threaded=True, request_handler=Quiet, ssl_context=tls
    )
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
