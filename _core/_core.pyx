# cython: language_level=3, freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""The native core: key memory, HKDF-Expand, HMAC, and AES-256-GCM over messages, runs of frames and batches of rows.

Everything here takes keys as `SecretBuffer` and never makes a Python object of key bytes. Classes may be used from
several threads at once; nothing here works in a forked child on what its parent made (`ForkError`).
"""

import errno
import os
import warnings

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_STRIDES,
    PyBUF_WRITABLE,
    PyBuffer_FillInfo,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrnoWithFilenameObject
from cpython.ref cimport Py_REFCNT
from libc.limits cimport INT_MAX
from libc.stddef cimport ptrdiff_t, size_t
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memmove, memset
from posix.stat cimport lstat, struct_stat

cimport openssl

from tapeseal.errors import ForkError, InvalidTag, UnlockedMemoryWarning

cdef extern from "memory.h" nogil:
    ctypedef struct secret_pages:
        unsigned char *mapping
        unsigned char *data
        size_t size
        int locked
    int secret_pages_map(secret_pages *pages, size_t size)
    void secret_pages_wipe(secret_pages *pages)
    void secret_pages_unmap(secret_pages *pages)
    void wipe_registers()
    void secret_copy(void *to, const void *src, size_t size)
    uint64_t c_process_epoch "process_epoch"()

cdef extern from "frames.h" nogil:
    enum:
        C_KEY_SIZE "KEY_SIZE"
        C_NONCE_SIZE "NONCE_SIZE"
        C_TAG_SIZE "TAG_SIZE"
        C_FRAME_HEADER_SIZE "FRAME_HEADER_SIZE"
    enum:
        OK
        ERR_TAG
    ctypedef struct frame_run:
        unsigned char *plain
        size_t plain_step
        unsigned char *sealed
        uint64_t count
        uint64_t first
        uint64_t index
        uint32_t frame_items
        uint32_t item_size
        int final
    uint64_t frame_run_frames(const frame_run *run)
    int gcm_seal(const openssl.EVP_CIPHER_CTX *key, const unsigned char *nonce, const unsigned char *aad,
                 size_t aad_size, const unsigned char *plain, size_t size, unsigned char *sealed)
    int gcm_open(const openssl.EVP_CIPHER_CTX *key, const unsigned char *nonce, const unsigned char *aad,
                 size_t aad_size, const unsigned char *sealed, size_t size, unsigned char *plain)
    int frames_seal(const openssl.EVP_CIPHER_CTX *key, const frame_run *run, unsigned threads)
    int frames_open(const openssl.EVP_CIPHER_CTX *key, const frame_run *run, unsigned threads, uint64_t *bad)

cdef extern from "crypto_memory.h" nogil:
    int crypto_memory_install()

cdef extern from "rows.h" nogil:
    enum:
        C_ROW_OVERHEAD "ROW_OVERHEAD"
    enum:
        ERR_CRYPTO
        ERR_OFFSETS
        ERR_SELF_TEST
        ERR_SIZE
    ctypedef struct row_column:
        unsigned char *data
        size_t size
        ptrdiff_t step
        const void *offsets
        int offset_size
    ctypedef struct row_batch:
        row_column plain
        row_column sealed
        row_column aad
        uint64_t count
        uint64_t counter
        unsigned char *valid
        int any_nonce
    ctypedef struct row_key:
        pass
    const char *row_kernel_name(unsigned i)
    int row_key_new(row_key **key, const unsigned char *secret, const char *kernel)
    void row_key_free(row_key *key)
    int rows_seal(row_key *key, const row_batch *batch, unsigned threads)
    int rows_open(row_key *key, const row_batch *batch, unsigned threads, uint64_t *bad)
    int c_row_offsets "row_offsets"(const row_column *column, uint64_t count, int more, void *offsets, uint64_t *total)

cdef extern from "shares.h" nogil:
    void share_at(unsigned char *share, const unsigned char *secret, const unsigned char *more, size_t size,
                  unsigned threshold, unsigned char x)
    void share_add(unsigned char *secret, const unsigned char *share, size_t size, const unsigned char *xs,
                   unsigned count, unsigned which)

cdef extern from * nogil:
    int __ATOMIC_SEQ_CST
    uint64_t __atomic_load_n(uint64_t *number, int order)
    bint __atomic_compare_exchange_n(uint64_t *number, uint64_t *expected, uint64_t desired, bint weak, int success,
                                     int failure)

cdef extern from "unistd.h" nogil:
    Py_ssize_t c_read "read"(int fd, void *buf, size_t count)

cdef extern from "errno.h" nogil:
    int c_errno "errno"

KEY_SIZE = C_KEY_SIZE
NONCE_SIZE = C_NONCE_SIZE
TAG_SIZE = C_TAG_SIZE
FRAME_HEADER_SIZE = C_FRAME_HEADER_SIZE
ROW_OVERHEAD = C_ROW_OVERHEAD

# FORMAT: frames hold at most 2**26 bytes, segments at most 2**32 frames and 2**40 bytes.
cdef uint64_t MAX_FRAME_SIZE = <uint64_t>1 << 26
cdef uint64_t MAX_SEGMENT_FRAMES = <uint64_t>1 << 32
cdef uint64_t MAX_SEGMENT_SIZE = <uint64_t>1 << 40

# Before anything else asks libcrypto for memory.
KEY_SCHEDULES_PROTECTED = bool(crypto_memory_install())

cdef openssl.EVP_CIPHER *aes_256_gcm = openssl.EVP_CIPHER_fetch(NULL, b"AES-256-GCM", NULL)
cdef openssl.EVP_KDF *hkdf = openssl.EVP_KDF_fetch(NULL, b"HKDF", NULL)
cdef openssl.EVP_MAC *hmac = openssl.EVP_MAC_fetch(NULL, b"HMAC", NULL)
if aes_256_gcm == NULL or hkdf == NULL or hmac == NULL:
    raise ImportError("this libcrypto offers no AES-256-GCM, no HKDF or no HMAC")


cdef crypto_error(str doing):
    """Make the exception of a failed libcrypto call from its error queue, and clear that queue."""
    cdef char text[256]
    cdef unsigned long code = openssl.ERR_peek_error()
    openssl.ERR_error_string_n(code, text, sizeof(text))
    openssl.ERR_clear_error()
    if code == 0:
        return MemoryError(f"libcrypto could not {doing}: out of memory")
    return RuntimeError(f"libcrypto could not {doing}: {text.decode('ascii', 'replace')}")


cpdef int check_process(uint64_t epoch) except -1:
    """Raise ForkError unless process_epoch() gave this number in this very process, and not in one it forked from."""
    if c_process_epoch() != epoch:
        raise ForkError("this was opened in the process that forked this one: open it again here")
    return 0


def process_epoch():
    """Return a number, above 0, that is this process's own: after a fork the child has another one."""
    cdef uint64_t epoch = c_process_epoch()
    if epoch == 0:
        raise MemoryError("no memory page, or no randomness, for the fork sentinel")
    return epoch


def openssl_version():
    """Return the version text of the libcrypto in use, such as "OpenSSL 3.5.7 9 Jun 2026"."""
    return openssl.OpenSSL_version(openssl.OPENSSL_VERSION).decode("ascii")


def wipe(buffer):
    """Overwrite a writable, contiguous buffer with zeros in a way no compiler removes."""
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    openssl.OPENSSL_cleanse(view.buf, <size_t>view.len)
    PyBuffer_Release(&view)


def copy_into(target, Py_ssize_t offset, source):
    """Copy a contiguous buffer's bytes into another one, whatever the types of both, and return how many.

    Args:
        target: writable contiguous buffer.
        offset: byte of target at which the first byte lands.
        source: contiguous buffer that fits behind offset.
    """
    cdef Py_buffer to
    cdef Py_buffer have
    PyObject_GetBuffer(source, &have, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(target, &to, PyBUF_WRITABLE)
        try:
            if offset < 0 or offset > to.len or have.len > to.len - offset:
                raise ValueError(f"{have.len} bytes do not fit at {offset} of {to.len}")
            memmove(<char *>to.buf + offset, have.buf, <size_t>have.len)
            return have.len
        finally:
            PyBuffer_Release(&to)
    finally:
        PyBuffer_Release(&have)


def file_state(bytes path not None):
    """Return device, inode and size of what stands at a path; a link is not followed.

    For those who ask with each record: os.lstat() makes twenty objects of its answer, which takes several times as long
    as the call itself.

    Args:
        path: as os.fsencode() gives it.

    Raises:
        OSError: FileNotFoundError where there is nothing, or what else hinders.
    """
    cdef struct_stat status
    if lstat(path, &status) != 0:
        PyErr_SetFromErrnoWithFilenameObject(OSError, os.fsdecode(path))
    return status.st_dev, status.st_ino, status.st_size


@cython.final
cdef class SecretBuffer:
    """Zeroed memory for a secret: own locked pages between guard pages, not dumped, wiped by close() and by a fork.

    Its bytes can be read, through the buffer protocol and if not `writable` read-only, inside `with secret:` alone. It
    has no repr of its bytes, no pickle, no copy, and equals nothing but itself.

    Args:
        size: bytes, 1 to 2**30.
        writable: views of it can be written to: for what is read from a socket, or put together piece by piece.

    Raises:
        MemoryError: no pages are to be had.

    Warns:
        UnlockedMemoryWarning: RLIMIT_MEMLOCK forbids locking; the secret may be swapped out.
    """

    cdef secret_pages pages
    cdef Py_ssize_t windows
    cdef Py_ssize_t views
    cdef uint64_t epoch
    cdef bint writable

    def __cinit__(self, Py_ssize_t size, *, bint writable=False):
        if not 1 <= size <= 1 << 30:
            raise ValueError(f"a secret has 1 to 2**30 bytes, not {size}")
        self.epoch = process_epoch()
        self.writable = writable
        if secret_pages_map(&self.pages, <size_t>size) != 0:
            raise MemoryError(f"no memory pages for a secret of {size} bytes")
        if not self.pages.locked:
            warnings.warn(
                "key memory could not be locked and may be swapped out: raise RLIMIT_MEMLOCK (ulimit -l)",
                UnlockedMemoryWarning,
                stacklevel=2,
            )

    def __dealloc__(self):
        secret_pages_unmap(&self.pages)

    @staticmethod
    def random(Py_ssize_t size):
        """Make a secret of `size` random bytes from libcrypto's private generator."""
        cdef SecretBuffer secret = SecretBuffer(size)
        cdef int done = openssl.RAND_priv_bytes(secret.pages.data, <int>size)
        wipe_registers()
        if done != 1:
            raise crypto_error("draw random bytes")
        return secret

    @staticmethod
    def take(source):
        """Move the bytes of a writable, contiguous buffer into a secret; the buffer is wiped."""
        cdef Py_buffer view
        cdef SecretBuffer secret
        PyObject_GetBuffer(source, &view, PyBUF_WRITABLE)
        try:
            secret = SecretBuffer(view.len)
            secret_copy(secret.pages.data, view.buf, <size_t>view.len)
            return secret
        finally:
            openssl.OPENSSL_cleanse(view.buf, <size_t>view.len)
            PyBuffer_Release(&view)

    @staticmethod
    def take_bytes(bytes source not None):
        """Move a bytes object that nobody else holds into a secret; the object's own memory is wiped.

        For what another library hands back as bytes: take_bytes(decrypt(...)), without a name in between.

        Raises:
            ValueError: somebody else holds it, or it is a single byte or none, which Python keeps one of.
        """
        cdef SecretBuffer secret
        # At most the caller's temporary and this call's argument refer to it.
        if len(source) < 2 or Py_REFCNT(source) > 2:
            raise ValueError("these bytes are somebody else's too, or Python's own")
        try:
            secret = SecretBuffer(len(source))
            secret_copy(secret.pages.data, PyBytes_AS_STRING(source), <size_t>len(source))
            return secret
        finally:
            openssl.OPENSSL_cleanse(PyBytes_AS_STRING(source), <size_t>len(source))

    @staticmethod
    def read(int fd, Py_ssize_t size):
        """Read exactly `size` bytes from a file descriptor straight into a secret.

        Raises:
            EOFError: the file ends before.
            OSError: it cannot be read.
        """
        cdef SecretBuffer secret = SecretBuffer(size)
        cdef Py_ssize_t have = 0
        cdef Py_ssize_t n
        cdef int code
        while have < size:
            with nogil:
                n = c_read(fd, secret.pages.data + have, <size_t>(size - have))
                code = c_errno
            if n > 0:
                have += n
            elif n == 0:
                raise EOFError(f"the file ends after {have} of {size} bytes")
            elif code == errno.EINTR:
                PyErr_CheckSignals()
            else:
                raise OSError(code, os.strerror(code))
        return secret

    @staticmethod
    def from_hex(SecretBuffer text not None, Py_ssize_t start, Py_ssize_t stop):
        """Decode the hexadecimal digits text[start:stop] into a new secret, in constant time.

        Raises:
            ValueError: an odd or empty range, or a character that is no digit.
        """
        cdef SecretBuffer secret
        cdef unsigned int bad = 0
        cdef unsigned int high
        cdef unsigned int low
        cdef Py_ssize_t i
        text._check()
        if not 0 <= start < stop <= <Py_ssize_t>text.pages.size or (stop - start) % 2:
            raise ValueError(f"{start} to {stop} is no range of hexadecimal digit pairs")
        secret = SecretBuffer((stop - start) // 2)
        for i in range((stop - start) // 2):
            high = hex_value(text.pages.data[start + 2 * i])
            low = hex_value(text.pages.data[start + 2 * i + 1])
            bad |= high | low
            secret.pages.data[i] = <unsigned char>(((high & 15) << 4) | (low & 15))
        if bad & 16:
            raise ValueError("the secret holds a character that is no hexadecimal digit")
        return secret

    def to_hex(self):
        """Return a new secret with this one's bytes as lower-case hexadecimal digits."""
        cdef SecretBuffer text
        cdef size_t i
        self._check()
        text = SecretBuffer(2 * <Py_ssize_t>self.pages.size)
        for i in range(self.pages.size):
            text.pages.data[2 * i] = hex_digit(self.pages.data[i] >> 4)
            text.pages.data[2 * i + 1] = hex_digit(self.pages.data[i] & 15)
        return text

    @staticmethod
    def from_base64(SecretBuffer text not None, Py_ssize_t start, Py_ssize_t stop):
        """Decode text[start:stop], base64 with its padding (RFC 4648, 4), into a new secret, in constant time.

        Raises:
            ValueError: the range is empty or no multiple of four, a character is outside the alphabet, or bits that
                no byte takes are set.
        """
        cdef SecretBuffer secret
        cdef const unsigned char *at
        cdef unsigned int bad = 0
        cdef unsigned int bits
        cdef unsigned int value
        cdef Py_ssize_t padding
        cdef Py_ssize_t size
        cdef Py_ssize_t i
        cdef Py_ssize_t j
        with cython.critical_section(text):
            text._check()
            if not 0 <= start < stop <= <Py_ssize_t>text.pages.size or (stop - start) % 4:
                raise ValueError(f"{start} to {stop} is no range of base64 groups")
            at = text.pages.data + stop
            padding = (at[-1] == 61) + (at[-1] == 61 and at[-2] == 61)
        size = (stop - start) // 4 * 3 - padding
        secret = SecretBuffer(size)
        with cython.critical_section(text):
            text._check()
            at = text.pages.data + start
            for i in range((stop - start) // 4):
                bits = 0
                for j in range(4 * i, 4 * i + 4):
                    value = 0 if j >= stop - start - padding else base64_value(at[j])
                    bad |= value
                    bits = bits << 6 | (value & 63)
                for j in range(3):
                    value = bits >> (16 - 8 * j) & 255
                    if 3 * i + j < size:
                        secret.pages.data[3 * i + j] = <unsigned char>value
                    else:
                        bad |= value << 6
        if bad >> 6:
            raise ValueError("the secret is not canonical base64")
        return secret

    def to_base64(self):
        """Return a new secret with this one's bytes as base64 with its padding."""
        cdef SecretBuffer text
        cdef unsigned int bits
        cdef Py_ssize_t size = <Py_ssize_t>self.pages.size
        cdef Py_ssize_t i
        cdef Py_ssize_t j
        self._check()
        text = SecretBuffer((size + 2) // 3 * 4)
        with cython.critical_section(self):
            self._check()
            for i in range((size + 2) // 3):
                bits = 0
                for j in range(3 * i, 3 * i + 3):
                    bits <<= 8
                    if j < size:
                        bits |= self.pages.data[j]
                for j in range(4):
                    if 3 * i + j <= size:
                        text.pages.data[4 * i + j] = base64_digit(bits >> (18 - 6 * j) & 63)
                    else:
                        text.pages.data[4 * i + j] = 61
        return text

    @property
    def closed(self):
        """Whether the secret was wiped."""
        return self.pages.mapping == NULL or self.windows < 0

    @property
    def locked(self):
        """Whether the pages are locked in memory."""
        return bool(self.pages.locked)

    def close(self):
        """Wipe the secret. Views that are still held read zeros; closing again does nothing."""
        with cython.critical_section(self):
            secret_pages_wipe(&self.pages)
            self.windows = -1
            if self.views == 0:
                secret_pages_unmap(&self.pages)

    cdef int _check(self) except -1:
        check_process(self.epoch)
        if self.pages.mapping == NULL or self.windows < 0:
            raise ValueError("the secret is closed")
        return 0

    def __len__(self):
        return <Py_ssize_t>self.pages.size

    def __enter__(self):
        with cython.critical_section(self):
            self._check()
            self.windows += 1
        return self

    def __exit__(self, exc_type, exc_value, traceback):
        with cython.critical_section(self):
            if self.windows > 0:
                self.windows -= 1

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        with cython.critical_section(self):
            self._check()
            if self.windows == 0:
                raise BufferError("a secret can be read inside `with secret:` only")
            PyBuffer_FillInfo(buffer, self, self.pages.data, <Py_ssize_t>self.pages.size, not self.writable, flags)
            self.views += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        with cython.critical_section(self):
            self.views -= 1
            if self.views == 0 and self.windows < 0:
                secret_pages_unmap(&self.pages)

    def __repr__(self):
        return f"<SecretBuffer of {self.pages.size} bytes>"

    def __reduce__(self):
        raise TypeError("a SecretBuffer is neither pickled nor copied")


cdef inline unsigned int hex_value(unsigned int c) noexcept nogil:
    """The digit's value, or 16 set where c is none; no branch or index depends on c."""
    cdef unsigned int lower = c | 32
    # Each mask is all ones where c lies in its range: a - 1 - c and c - b - 1 both borrow there.
    cdef unsigned int digit = ((47 - c) & (c - 58)) >> 31
    cdef unsigned int letter = ((96 - lower) & (lower - 103)) >> 31
    return digit * (c & 15) + letter * ((lower - 87) & 15) + 16 * (1 - (digit | letter))


cdef inline unsigned char hex_digit(unsigned int v) noexcept nogil:
    # 39 more from 10 on: the way from ":" to "a".
    return <unsigned char>(v + 48 + (((9 - v) >> 31) * 39))


cdef inline unsigned int within(unsigned int c, unsigned int first, unsigned int last) noexcept nogil:
    """1 where first <= c <= last, else 0, for numbers below 2**31 and a first above 0; nothing branches on c."""
    return ((first - 1 - c) & (c - last - 1)) >> 31


cdef inline unsigned int base64_value(unsigned int c) noexcept nogil:
    """The digit's value, or 64 set where c is none; no branch or index depends on c."""
    cdef unsigned int upper = within(c, 65, 90)
    cdef unsigned int lower = within(c, 97, 122)
    cdef unsigned int digit = within(c, 48, 57)
    cdef unsigned int plus = within(c, 43, 43)
    cdef unsigned int slash = within(c, 47, 47)
    return (upper * ((c - 65) & 63) + lower * ((c - 71) & 63) + digit * ((c + 4) & 63) + plus * 62 + slash * 63
            + 64 * (1 - (upper | lower | digit | plus | slash)))


cdef inline unsigned char base64_digit(unsigned int v) noexcept nogil:
    # v + 1 in the first: a range of within() cannot start at 0.
    return <unsigned char>(within(v + 1, 1, 26) * (v + 65) + within(v, 26, 51) * (v + 71) + within(v, 52, 61) * (v - 4)
                           + within(v, 62, 62) * 43 + within(v, 63, 63) * 47)


def hkdf_expand(SecretBuffer key not None, info, Py_ssize_t size):
    """Derive a secret by HKDF-Expand with SHA-512 (RFC 5869, 2.3).

    Args:
        key: the pseudorandom key; RFC 5869 wants as many random bytes as the hash has, or a uniformly random key.
        info: contiguous buffer of at most 1024 bytes.
        size: bytes to derive, 1 to 255 * 64.
    """
    cdef Py_buffer view
    cdef openssl.OSSL_PARAM params[5]
    cdef openssl.EVP_KDF_CTX *ctx
    cdef int mode = openssl.EVP_KDF_HKDF_MODE_EXPAND_ONLY
    cdef int done
    cdef SecretBuffer derived
    if not 1 <= size <= 255 * 64:
        raise ValueError(f"HKDF-Expand gives 1 to 16320 bytes, not {size}")
    derived = SecretBuffer(size)
    PyObject_GetBuffer(info, &view, PyBUF_SIMPLE)
    try:
        with cython.critical_section(key):
            key._check()
            params[0] = openssl.OSSL_PARAM_construct_utf8_string(b"digest", <char *>b"SHA512", 0)
            params[1] = openssl.OSSL_PARAM_construct_int(b"mode", &mode)
            params[2] = openssl.OSSL_PARAM_construct_octet_string(b"key", key.pages.data, key.pages.size)
            params[3] = openssl.OSSL_PARAM_construct_octet_string(b"info", view.buf, <size_t>view.len)
            params[4] = openssl.OSSL_PARAM_construct_end()
            ctx = openssl.EVP_KDF_CTX_new(hkdf)
            done = ctx != NULL and openssl.EVP_KDF_derive(ctx, derived.pages.data, <size_t>size, params)
            openssl.EVP_KDF_CTX_free(ctx)
            wipe_registers()
    finally:
        PyBuffer_Release(&view)
    if done != 1:
        raise crypto_error("derive a key")
    return derived


@cython.final
cdef class HMAC:
    """One HMAC-SHA-256 key (RFC 2104), for which a context is made once.

    Args:
        key: the secret that is the key; it may be closed afterwards.
    """

    # libcrypto wipes the keyed states when it frees the context.
    cdef openssl.EVP_MAC_CTX *ctx
    cdef uint64_t epoch

    def __cinit__(self, SecretBuffer key not None):
        cdef openssl.OSSL_PARAM params[2]
        cdef int done
        params[0] = openssl.OSSL_PARAM_construct_utf8_string(b"digest", <char *>b"SHA256", 0)
        params[1] = openssl.OSSL_PARAM_construct_end()
        self.ctx = openssl.EVP_MAC_CTX_new(hmac)
        if self.ctx == NULL:
            raise crypto_error("make a context for HMAC")
        self.epoch = key.epoch
        with cython.critical_section(key):
            key._check()
            done = openssl.EVP_MAC_init(self.ctx, key.pages.data, key.pages.size, params)
            wipe_registers()
        if done != 1:
            raise crypto_error("set a key")

    def __dealloc__(self):
        openssl.EVP_MAC_CTX_free(self.ctx)

    def close(self):
        """Wipe the key, which no digest can be computed with any more; closing again does nothing."""
        with cython.critical_section(self):
            openssl.EVP_MAC_CTX_free(self.ctx)
            self.ctx = NULL

    def __reduce__(self):
        raise TypeError("an HMAC key is neither pickled nor copied")

    def digest(self, data):
        """Return the 32 bytes of the MAC of a contiguous buffer.

        Raises:
            ValueError: the key is closed.
            ForkError: this process is a fork of the one that made the key.
        """
        cdef Py_buffer view
        cdef int done
        cdef size_t size = 0
        cdef bytes mac = PyBytes_FromStringAndSize(NULL, 32)
        check_process(self.epoch)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with cython.critical_section(self):
                if self.ctx == NULL:
                    raise ValueError("the key is closed")
                done = (
                    openssl.EVP_MAC_init(self.ctx, NULL, 0, NULL)
                    and openssl.EVP_MAC_update(self.ctx, <const unsigned char *>view.buf, <size_t>view.len)
                    and openssl.EVP_MAC_final(self.ctx, <unsigned char *>PyBytes_AS_STRING(mac), &size, 32)
                )
                wipe_registers()
        finally:
            PyBuffer_Release(&view)
        if done != 1 or size != 32:
            raise crypto_error("compute an HMAC")
        return mac


def split_secret(SecretBuffer secret not None, int threshold, bytes indices not None):
    """Return the shares of a secret by Shamir's method, byte by byte over GF(2^8), one at each index (FORMAT 3).

    Args:
        secret: of any size; each share has the same.
        threshold: how many shares give it; fewer tell nothing of it.
        indices: different numbers from 1 to 255, at least as many as threshold.
    """
    cdef SecretBuffer more
    cdef SecretBuffer share
    cdef list shares = []
    cdef const unsigned char *points = <const unsigned char *>PyBytes_AS_STRING(indices)
    cdef Py_ssize_t i
    check_indices(indices)
    if not 1 <= threshold <= len(indices):
        raise ValueError(f"any {threshold} of {len(indices)} shares is not possible")
    # A byte more, for a threshold of 1 needs none and no secret is empty.
    more = SecretBuffer.random((threshold - 1) * len(secret) + 1)
    try:
        with cython.critical_section(secret):
            secret._check()
            for i in range(len(indices)):
                share = SecretBuffer(<Py_ssize_t>secret.pages.size)
                share_at(share.pages.data, secret.pages.data, more.pages.data, secret.pages.size, <unsigned>threshold,
                         points[i])
                shares.append(share)
    finally:
        more.close()
    return shares


def combine_shares(shares, bytes indices not None):
    """Return the secret that shares give, if they are as many as the threshold and none was changed.

    Nothing tells a wrong secret from the right one here.

    Args:
        shares: a sequence of SecretBuffer, all of one size.
        indices: theirs, in the same order: different numbers from 1 to 255.
    """
    cdef SecretBuffer secret
    cdef SecretBuffer share
    cdef unsigned which
    check_indices(indices)
    if len(shares) != len(indices):
        raise ValueError(f"{len(shares)} shares and {len(indices)} indices")
    secret = SecretBuffer(len(shares[0]))
    for which in range(<unsigned>len(indices)):
        share = shares[which]
        with cython.critical_section(share):
            share._check()
            if share.pages.size != secret.pages.size:
                raise ValueError("the shares are of different sizes")
            share_add(secret.pages.data, share.pages.data, share.pages.size,
                      <const unsigned char *>PyBytes_AS_STRING(indices), <unsigned>len(indices), which)
    return secret


cdef int check_indices(bytes indices) except -1:
    if len(indices) == 0 or 0 in indices or len(set(indices)) != len(indices):
        raise ValueError("the indices of shares are different numbers from 1 to 255, at least one")
    return 0


@cython.final
cdef class AESGCM:
    """One AES-256-GCM key (SP 800-38D), safe to share between threads: each call works on a copy of a keyed context.

    Args:
        key: the secret that holds the key; it may be closed afterwards.
        offset: byte of the secret at which the key's 32 bytes start.
    """

    # libcrypto wipes the key schedule when it frees the context.
    cdef openssl.EVP_CIPHER_CTX *ctx
    cdef uint64_t epoch

    def __cinit__(self, SecretBuffer key not None, Py_ssize_t offset=0):
        cdef int done
        if offset < 0 or <Py_ssize_t>key.pages.size - offset < C_KEY_SIZE:
            raise ValueError(f"a key is 32 bytes; the secret has {key.pages.size} and the offset is {offset}")
        self.ctx = openssl.EVP_CIPHER_CTX_new()
        if self.ctx == NULL:
            raise crypto_error("make a cipher context")
        self.epoch = key.epoch
        with cython.critical_section(key):
            key._check()
            done = openssl.EVP_CipherInit_ex2(self.ctx, aes_256_gcm, key.pages.data + offset, NULL, 1, NULL)
            wipe_registers()
        if done != 1:
            raise crypto_error("set a key")

    def __dealloc__(self):
        openssl.EVP_CIPHER_CTX_free(self.ctx)

    def __reduce__(self):
        raise TypeError("an AESGCM key is neither pickled nor copied")

    def encrypt(self, nonce, plaintext, associated_data=b""):
        """Encrypt and authenticate one message.

        The same nonce twice under one key reveals the plaintexts and lets others forge (SP 800-38D, 8 and App. A).

        Args:
            nonce: 12 bytes, never used before with this key.
            plaintext: contiguous buffer of 0 to 2**31 - 17 bytes; not changed, held only for the call.
            associated_data: contiguous buffer of 0 to 2**31 - 1 bytes; needed again to decrypt.

        Returns:
            len(plaintext) + 16 bytes: the ciphertext, then the tag.

        Raises:
            ValueError: nonce is not 12 bytes.
            OverflowError: plaintext or associated_data is too long.
            ForkError: this process is a fork of the one that made the key.
        """
        cdef Py_buffer iv
        cdef Py_buffer plain
        cdef Py_buffer aad
        cdef bytes sealed
        cdef unsigned char *out
        cdef int code
        check_process(self.epoch)
        PyObject_GetBuffer(nonce, &iv, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(plaintext, &plain, PyBUF_SIMPLE)
            try:
                PyObject_GetBuffer(associated_data, &aad, PyBUF_SIMPLE)
                try:
                    check_message(&iv, plain.len + C_TAG_SIZE, &aad)
                    sealed = PyBytes_FromStringAndSize(NULL, plain.len + C_TAG_SIZE)
                    out = <unsigned char *>PyBytes_AS_STRING(sealed)
                    with nogil:
                        code = gcm_seal(self.ctx, <unsigned char *>iv.buf, <unsigned char *>aad.buf, <size_t>aad.len,
                                        <unsigned char *>plain.buf, <size_t>plain.len, out)
                finally:
                    PyBuffer_Release(&aad)
            finally:
                PyBuffer_Release(&plain)
        finally:
            PyBuffer_Release(&iv)
        if code != OK:
            raise crypto_error("encrypt")
        return sealed

    def decrypt(self, nonce, sealed, associated_data=b""):
        """Verify and decrypt one message; arguments as encrypt() took and gave them.

        Returns:
            len(sealed) - 16 bytes.

        Raises:
            InvalidTag: it was not sealed so under this key, or is shorter than a tag; nothing is released.
            ValueError: nonce is not 12 bytes.
            OverflowError: sealed or associated_data is too long.
            ForkError: this process is a fork of the one that made the key.
        """
        cdef Py_ssize_t size = message_size(sealed)
        plain = PyBytes_FromStringAndSize(NULL, size)
        # The object is of this call alone until it is returned, so its bytes may still be written.
        self._open(nonce, sealed, associated_data, <unsigned char *>PyBytes_AS_STRING(plain), size)
        return plain

    def decrypt_secret(self, nonce, sealed, associated_data=b""):
        """Verify and decrypt one message of 1 byte and more into a new SecretBuffer; errors as decrypt()."""
        cdef Py_ssize_t size = message_size(sealed)
        cdef SecretBuffer plain = SecretBuffer(size)
        self._open(nonce, sealed, associated_data, plain.pages.data, size)
        return plain

    cdef int _open(self, nonce, sealed, associated_data, unsigned char *out, Py_ssize_t size) except -1:
        cdef Py_buffer iv
        cdef Py_buffer have
        cdef Py_buffer aad
        cdef int code
        check_process(self.epoch)
        PyObject_GetBuffer(nonce, &iv, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(sealed, &have, PyBUF_SIMPLE)
            try:
                PyObject_GetBuffer(associated_data, &aad, PyBUF_SIMPLE)
                try:
                    check_message(&iv, have.len, &aad)
                    if have.len != size + C_TAG_SIZE:
                        raise ValueError("the message changed its size during the call")
                    with nogil:
                        code = gcm_open(self.ctx, <unsigned char *>iv.buf, <unsigned char *>aad.buf, <size_t>aad.len,
                                        <unsigned char *>have.buf, <size_t>size, out)
                finally:
                    PyBuffer_Release(&aad)
            finally:
                PyBuffer_Release(&have)
        finally:
            PyBuffer_Release(&iv)
        if code == ERR_TAG:
            openssl.ERR_clear_error()
            raise InvalidTag()
        if code != OK:
            raise crypto_error("decrypt")
        return 0

    def seal_frames(self, target, source, *, uint64_t count, uint32_t item_size, uint32_t frame_items,
                    uint64_t first, uint64_t index, bint final=False, unsigned threads=1):
        """Seal a run of frames: header, ciphertext and tag of each, one behind the other.

        The caller never gives an index twice under one key (FORMAT, 5: a number is consumed before it is sealed).

        Args:
            target: writable contiguous buffer with room for the frames.
            source: contiguous buffer of exactly count * item_size bytes that does not overlap target; or None: the
                plaintext already stands in target, each frame's at its place behind the room for its header.
            count: items (records, or bytes with item_size 1) in all; 0 only with final.
            item_size: bytes of an item.
            frame_items: items of each frame but the last, which has the rest; 2**26 bytes at most.
            first: number of the first item in its tape.
            index: number of the first frame in its segment; becomes the nonce.
            final: the last frame is a final one (type 3).
            threads: how many may share the work, this one counted.

        Returns:
            How many bytes of target were written.

        Raises:
            ValueError: sizes that do not fit together.
            ForkError: this process is a fork of the one that made the key.
        """
        return self._frames(target, source, True, count, item_size, frame_items, first, index, final, threads)

    def open_frames(self, target, source, *, uint64_t count, uint32_t item_size, uint32_t frame_items,
                    uint64_t first, uint64_t index, bint final=False, unsigned threads=1):
        """Verify and open a run of frames, the inverse of seal_frames().

        Args:
            target: writable contiguous buffer of exactly count * item_size bytes that does not overlap source; or
                None: each plaintext replaces its ciphertext in source, which is then writable.
            source: contiguous buffer that starts with the frames.
            count, item_size, frame_items, first, index, final, threads: as they were sealed; headers that say
                anything else do not open.

        Returns:
            How many bytes of source the frames fill.

        Raises:
            InvalidTag: a frame is not authentic; its `index` is the first such frame's place in the run. Plaintext
                of frames that failed is wiped; the rest of target is for the caller to drop.
            ValueError: sizes that do not fit together.
            ForkError: this process is a fork of the one that made the key.
        """
        return self._frames(source, target, False, count, item_size, frame_items, first, index, final, threads)

    cdef _frames(self, sealed, plain, bint sealing, uint64_t count, uint32_t item_size, uint32_t frame_items,
                 uint64_t first, uint64_t index, bint final, unsigned threads):
        cdef Py_buffer outer
        cdef Py_buffer inner
        cdef frame_run run
        cdef uint64_t frames
        cdef uint64_t size
        cdef uint64_t frame_size = <uint64_t>item_size * frame_items
        cdef uint64_t bad = 0
        cdef int code
        check_process(self.epoch)
        if frame_size == 0 or frame_size > MAX_FRAME_SIZE:
            raise ValueError(f"frames hold 1 to 2**26 bytes, not {frame_items} items of {item_size}")
        if count > MAX_SEGMENT_SIZE // item_size:
            raise ValueError(f"{count} items of {item_size} bytes are over the 2**40 bytes of a segment")
        if count == 0 and not final:
            raise ValueError("only a final frame may be empty")
        run.count = count
        run.first = first
        run.index = index
        run.item_size = item_size
        run.frame_items = frame_items
        run.final = final
        frames = frame_run_frames(&run)
        if index > MAX_SEGMENT_FRAMES or frames > MAX_SEGMENT_FRAMES - index:
            raise ValueError("a segment has at most 2**32 frames")
        size = count * item_size + frames * (C_FRAME_HEADER_SIZE + C_TAG_SIZE)
        PyObject_GetBuffer(sealed, &outer, PyBUF_WRITABLE if sealing or plain is None else PyBUF_SIMPLE)
        try:
            if <uint64_t>outer.len < size:
                raise ValueError(f"{frames} frames fill {size} bytes; the buffer has {outer.len}")
            run.sealed = <unsigned char *>outer.buf
            if plain is None:
                run.plain = run.sealed + C_FRAME_HEADER_SIZE
                run.plain_step = frame_size + C_FRAME_HEADER_SIZE + C_TAG_SIZE
                code = self._run(&run, sealing, threads, &bad)
            else:
                PyObject_GetBuffer(plain, &inner, PyBUF_SIMPLE if sealing else PyBUF_WRITABLE)
                try:
                    if <uint64_t>inner.len != count * item_size:
                        raise ValueError(f"{count} items are {count * item_size} bytes; the buffer has {inner.len}")
                    run.plain = <unsigned char *>inner.buf
                    run.plain_step = frame_size
                    if run.plain < run.sealed + size and run.sealed < run.plain + inner.len:
                        raise ValueError("the plaintext and the frames overlap")
                    code = self._run(&run, sealing, threads, &bad)
                finally:
                    PyBuffer_Release(&inner)
        finally:
            PyBuffer_Release(&outer)
        if code == ERR_TAG:
            openssl.ERR_clear_error()
            raise InvalidTag(bad)
        if code != OK:
            raise crypto_error("seal frames" if sealing else "open frames")
        return size

    cdef int _run(self, const frame_run *run, bint sealing, unsigned threads, uint64_t *bad) noexcept:
        cdef int code
        with nogil:
            if sealing:
                code = frames_seal(self.ctx, run, threads)
            else:
                code = frames_open(self.ctx, run, threads, bad)
        return code


@cython.final
cdef class Counter:
    """Numbers that are given out once each, from 0 on, to whichever threads ask; without a lock, which a fork may copy.

    Args:
        limit: how many there are, below 2**63.
    """

    cdef uint64_t next
    cdef uint64_t limit

    def __cinit__(self, uint64_t limit):
        if limit >= <uint64_t>1 << 63:
            raise ValueError("a limit is below 2**63")
        self.limit = limit

    @property
    def taken(self):
        """How many were given out."""
        return __atomic_load_n(&self.next, __ATOMIC_SEQ_CST)

    def take(self, uint64_t count):
        """Take `count` numbers for good and return the first.

        Raises:
            OverflowError: there are not as many left; none is taken.
        """
        cdef uint64_t first = __atomic_load_n(&self.next, __ATOMIC_SEQ_CST)
        while True:
            if count > self.limit - first:
                raise OverflowError(f"{self.limit - first} of {self.limit} numbers are left, {count} are needed")
            if __atomic_compare_exchange_n(&self.next, &first, first + count, False, __ATOMIC_SEQ_CST,
                                           __ATOMIC_SEQ_CST):
                return first

    def __reduce__(self):
        raise TypeError("a Counter is neither pickled nor copied")


def row_kernels():
    """Return the names of the kernels of `RowCipher` that this machine can run, the fastest first."""
    names = []
    cdef const char *name = row_kernel_name(0)
    while name != NULL:
        names.append((<bytes>name).decode("ascii"))
        name = row_kernel_name(<unsigned>len(names))
    return tuple(names)


@cython.final
cdef class RowCipher:
    """One AES-256-GCM key for batches of rows, each of them nonce, ciphertext and tag; safe to share between threads.

    A batch is a strided array of one dimension, or of two whose rows are contiguous. Rows of various sizes are a
    contiguous buffer and a contiguous array of count + 1 offsets into it, of 4 or 8 bytes each.

    Args:
        key: the secret that holds the key's 32 bytes; it may be closed afterwards.
        kernel: one of row_kernels(); None: the one that TAPESEAL_KERNEL names, or the first.

    Raises:
        ValueError: a kernel that this machine cannot run, or a secret of another size.
        RuntimeError: the kernel failed its self-test, which runs when it is first used.
    """

    cdef row_key *key
    cdef uint64_t epoch

    def __cinit__(self, SecretBuffer key not None, kernel=None):
        cdef int code
        cdef bytes name
        names = row_kernels()
        if kernel is None:
            kernel = os.environ.get("TAPESEAL_KERNEL") or names[0]
        if kernel not in names:
            raise ValueError(f"row kernel {kernel!r} is none of those that run here: {', '.join(names)}")
        if key.pages.size != C_KEY_SIZE:
            raise ValueError(f"a key is 32 bytes; the secret has {key.pages.size}")
        name = kernel.encode("ascii")
        self.epoch = key.epoch
        with cython.critical_section(key):
            key._check()
            code = row_key_new(&self.key, key.pages.data, name)
        if code == ERR_SELF_TEST:
            raise RuntimeError(
                f"row kernel {kernel} failed its self-test and is not used; TAPESEAL_KERNEL=evp avoids it")
        if code != OK:
            raise crypto_error("set a key")

    def __dealloc__(self):
        row_key_free(self.key)

    def __reduce__(self):
        raise TypeError("a RowCipher is neither pickled nor copied")

    def seal_rows(self, target, source, *, uint64_t counter, target_offsets=None, source_offsets=None,
                  associated_data=None, associated_rows=None, associated_offsets=None, unsigned threads=1,
                  bint any_nonce=False):
        """Seal a batch of rows.

        The caller never gives a counter twice under one key (FORMAT, 8: they are reserved before sealing).

        Args:
            target: writable batch of the sealed rows, ROW_OVERHEAD bytes longer each than those of source.
            source: batch of the rows, which does not overlap target.
            counter: the first row's, becomes its nonce; the next one's is one more, and so on; below 2**40.
            target_offsets, source_offsets: of rows of various sizes; target_offsets as row_offsets() makes them.
            associated_data: contiguous buffer, the same for all rows.
            associated_rows: batch of as many as there are rows, one for each; with or without associated_offsets.
            threads: how many may share the work, this one counted.
            any_nonce: for tests: each nonce already stands in target, and counter is not looked at.

        Raises:
            ValueError: sizes or offsets that do not fit together.
            OverflowError: a row or its associated data has 2**31 bytes or more.
            ForkError: this process is a fork of the one that made the key.
        """
        self._rows(target, source, True, counter, target_offsets, source_offsets, associated_data, associated_rows,
                   associated_offsets, None, threads, any_nonce)

    def open_rows(self, target, source, *, target_offsets=None, source_offsets=None, associated_data=None,
                  associated_rows=None, associated_offsets=None, valid=None, unsigned threads=1,
                  bint any_nonce=False):
        """Verify and open a batch of rows, the inverse of seal_rows().

        The bytes of a row that is not authentic become zeros in target; those of the others are there.

        Args:
            target: writable batch for the rows.
            source: batch of the sealed rows, which does not overlap target.
            target_offsets, source_offsets, associated_data, associated_rows, associated_offsets, threads: as above.
            valid: writable contiguous buffer of a byte a row: becomes 1 where the row is authentic, else 0. None: a
                row that is not raises.
            any_nonce: for tests: a nonce need not be one that seal_rows() makes of a counter.

        Raises:
            InvalidTag: valid is None and a row is not authentic; its `index` is the first such row's.
            ValueError, OverflowError, ForkError: as seal_rows().
        """
        self._rows(source, target, False, 0, source_offsets, target_offsets, associated_data, associated_rows,
                   associated_offsets, valid, threads, any_nonce)

    cdef int _rows(self, sealed, plain, bint sealing, uint64_t counter, sealed_offsets, plain_offsets,
                   associated_data, associated_rows, associated_offsets, valid, unsigned threads,
                   bint any_nonce) except -1:
        cdef Py_buffer views[7]
        cdef int held = 0
        cdef row_batch batch
        cdef Py_ssize_t count
        cdef uint64_t bad = 0
        cdef int code
        check_process(self.epoch)
        memset(&batch, 0, sizeof(batch))
        batch.aad.data = <unsigned char *>b""
        try:
            count = borrow_rows(&batch.sealed, sealed, sealed_offsets, sealing, views, &held)
            batch.count = <uint64_t>count
            if borrow_rows(&batch.plain, plain, plain_offsets, not sealing, views, &held) != count:
                raise ValueError("there are not as many rows as sealed rows")
            if (sealed_offsets is None) != (plain_offsets is None):
                raise ValueError("rows and sealed rows have offsets both, or neither")
            if sealed_offsets is None and batch.sealed.size != batch.plain.size + C_ROW_OVERHEAD:
                raise ValueError(f"a row of {batch.plain.size} bytes is {batch.plain.size + C_ROW_OVERHEAD} sealed, "
                                 f"not {batch.sealed.size}")
            if associated_rows is not None:
                if associated_data is not None:
                    raise ValueError("associated data are for all rows or for each, not both")
                if borrow_rows(&batch.aad, associated_rows, associated_offsets, False, views, &held) != count:
                    raise ValueError("there are not as many associated data as rows")
                # A stride of 0, from broadcasting, is no different from one for all.
            elif associated_data is not None:
                PyObject_GetBuffer(associated_data, &views[held], PyBUF_SIMPLE)
                held += 1
                batch.aad.data = <unsigned char *>views[held - 1].buf
                batch.aad.size = <size_t>views[held - 1].len
            if valid is not None:
                PyObject_GetBuffer(valid, &views[held], PyBUF_WRITABLE)
                held += 1
                batch.valid = <unsigned char *>views[held - 1].buf
                if views[held - 1].len != count:
                    raise ValueError("valid has not a byte a row")
            if overlap(&batch.sealed, &batch.plain, batch.count):
                raise ValueError("rows and sealed rows overlap")
            batch.counter = counter
            batch.any_nonce = any_nonce
            with nogil:
                if sealing:
                    code = rows_seal(self.key, &batch, threads)
                else:
                    code = rows_open(self.key, &batch, threads, &bad)
        finally:
            while held > 0:
                held -= 1
                PyBuffer_Release(&views[held])
        if code == OK:
            return 0
        if code == ERR_OFFSETS:
            raise ValueError("offsets run backwards, leave their data, or are not those of the sealed rows")
        if code == ERR_SIZE:
            raise OverflowError("a row and its associated data have less than 2**31 bytes each")
        if code != ERR_TAG:
            raise crypto_error("seal rows" if sealing else "open rows")
        openssl.ERR_clear_error()
        if valid is None:
            raise InvalidTag(bad)
        return 0


cdef Py_ssize_t borrow_rows(row_column *column, rows, offsets, bint writable, Py_buffer *views, int *held) except -1:
    """Acquire the buffers of a batch, which the caller releases, and return the number of rows."""
    cdef Py_buffer *view = &views[held[0]]
    cdef Py_ssize_t count
    if offsets is not None:
        PyObject_GetBuffer(rows, view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
        held[0] += 1
        column.data = <unsigned char *>view.buf
        column.size = <size_t>view.len
        view = &views[held[0]]
        PyObject_GetBuffer(offsets, view, PyBUF_STRIDES)
        held[0] += 1
        if view.ndim != 1 or view.itemsize not in (4, 8) or view.shape[0] < 1 or (
            view.shape[0] > 1 and view.strides[0] != view.itemsize
        ):
            raise ValueError("offsets are a contiguous array of 4 or 8 bytes each, one more than there are rows")
        column.offsets = view.buf
        column.offset_size = <int>view.itemsize
        return view.shape[0] - 1
    PyObject_GetBuffer(rows, view, (PyBUF_STRIDES | PyBUF_WRITABLE) if writable else PyBUF_STRIDES)
    held[0] += 1
    if view.ndim == 1:
        column.size = <size_t>view.itemsize
    elif view.ndim == 2 and (view.shape[1] <= 1 or view.strides[1] == view.itemsize):
        column.size = <size_t>(view.shape[1] * view.itemsize)
    else:
        raise ValueError("rows are an array of one dimension, or of two whose rows are contiguous")
    column.data = <unsigned char *>view.buf
    column.step = view.strides[0]
    count = view.shape[0]
    if count <= 1:
        # A step of 0 says that one thing is for all rows, which for one row is as true.
        column.step = 0
    elif writable and <size_t>abs(column.step) < column.size:
        raise ValueError("rows to be written overlap each other")
    return count


cdef bint overlap(const row_column *a, const row_column *b, uint64_t count) noexcept:
    cdef size_t a_from, a_to, b_from, b_to
    extent(a, count, &a_from, &a_to)
    extent(b, count, &b_from, &b_to)
    return a_from < b_to and b_from < a_to


cdef void extent(const row_column *column, uint64_t count, size_t *start, size_t *stop) noexcept:
    """The addresses that a column spans."""
    cdef ptrdiff_t last = 0
    if column.offsets == NULL and count > 0:
        last = <ptrdiff_t>(count - 1) * column.step
    start[0] = <size_t>column.data + <size_t>(last if last < 0 else 0)
    stop[0] = <size_t>column.data + <size_t>(last if last > 0 else 0) + column.size
    if count == 0 or column.size == 0:
        stop[0] = start[0]


def row_offsets(target, data, offsets, int more):
    """Fill in the offsets of rows that are `more` bytes longer than those of a batch, and return where the last ends.

    Args:
        target: writable contiguous buffer of the size of offsets.
        data: the batch's contiguous buffer.
        offsets: its contiguous array of offsets, of 4 or 8 bytes each.
        more: may be negative: a row of fewer bytes becomes one of none.

    Raises:
        ValueError: the offsets run backwards or leave the data.
        OverflowError: the new offsets are over what so many bytes can say.
    """
    cdef Py_buffer views[3]
    cdef int held = 0
    cdef row_column column
    cdef Py_ssize_t count
    cdef uint64_t total = 0
    cdef int code
    memset(&column, 0, sizeof(column))
    try:
        count = borrow_rows(&column, data, offsets, False, views, &held)
        PyObject_GetBuffer(target, &views[held], PyBUF_WRITABLE)
        held += 1
        if views[held - 1].len != views[held - 2].len:
            raise ValueError("target is not of the size of offsets")
        with nogil:
            code = c_row_offsets(&column, <uint64_t>count, more, views[held - 1].buf, &total)
    finally:
        while held > 0:
            held -= 1
            PyBuffer_Release(&views[held])
    if code == ERR_SIZE:
        raise OverflowError("the rows are over what offsets of this size can say: take 8 bytes each")
    if code != OK:
        raise ValueError("offsets run backwards or leave their data")
    return total


cdef int check_message(const Py_buffer *nonce, Py_ssize_t sealed_size, const Py_buffer *aad) except -1:
    if nonce.len != C_NONCE_SIZE:
        raise ValueError(f"nonce must be 12 bytes, not {nonce.len}")
    # EVP counts in int; the limit of GCM itself (2**36 - 32 bytes) lies above.
    if sealed_size > INT_MAX:
        raise OverflowError("one message is at most 2**31 - 17 bytes")
    if aad.len > INT_MAX:
        raise OverflowError("associated_data is at most 2**31 - 1 bytes")
    return 0


cdef Py_ssize_t message_size(sealed) except -1:
    """Bytes of plaintext in a sealed message."""
    cdef Py_buffer view
    cdef Py_ssize_t size
    PyObject_GetBuffer(sealed, &view, PyBUF_SIMPLE)
    size = view.len
    PyBuffer_Release(&view)
    if size < C_TAG_SIZE:
        raise InvalidTag()
    if size > INT_MAX:
        raise OverflowError("one message is at most 2**31 - 17 bytes")
    return size - C_TAG_SIZE
