# Declarations of libcrypto: what the core calls, and nothing else.

from libc.stddef cimport size_t

cdef extern from "openssl/crypto.h" nogil:
    int OPENSSL_VERSION
    const char *OpenSSL_version(int type)
    void OPENSSL_cleanse(void *ptr, size_t len)

cdef extern from "openssl/err.h" nogil:
    unsigned long ERR_peek_error()
    void ERR_error_string_n(unsigned long e, char *buf, size_t len)
    void ERR_clear_error()

cdef extern from "openssl/rand.h" nogil:
    int RAND_priv_bytes(unsigned char *buf, int num)

cdef extern from "openssl/params.h" nogil:
    ctypedef struct OSSL_PARAM:
        pass
    OSSL_PARAM OSSL_PARAM_construct_utf8_string(const char *key, char *buf, size_t bsize)
    OSSL_PARAM OSSL_PARAM_construct_octet_string(const char *key, void *buf, size_t bsize)
    OSSL_PARAM OSSL_PARAM_construct_int(const char *key, int *buf)
    OSSL_PARAM OSSL_PARAM_construct_end()

cdef extern from "openssl/kdf.h" nogil:
    ctypedef struct EVP_KDF:
        pass
    ctypedef struct EVP_KDF_CTX:
        pass
    int EVP_KDF_HKDF_MODE_EXPAND_ONLY
    EVP_KDF *EVP_KDF_fetch(void *libctx, const char *algorithm, const char *properties)
    EVP_KDF_CTX *EVP_KDF_CTX_new(EVP_KDF *kdf)
    void EVP_KDF_CTX_free(EVP_KDF_CTX *ctx)
    int EVP_KDF_derive(EVP_KDF_CTX *ctx, unsigned char *key, size_t keylen, const OSSL_PARAM *params)

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    ctypedef struct EVP_CIPHER_CTX:
        pass
    ctypedef struct EVP_MAC:
        pass
    ctypedef struct EVP_MAC_CTX:
        pass
    EVP_MAC *EVP_MAC_fetch(void *libctx, const char *algorithm, const char *properties)
    EVP_MAC_CTX *EVP_MAC_CTX_new(EVP_MAC *mac)
    void EVP_MAC_CTX_free(EVP_MAC_CTX *ctx)
    int EVP_MAC_init(EVP_MAC_CTX *ctx, const unsigned char *key, size_t keylen, const OSSL_PARAM *params)
    int EVP_MAC_update(EVP_MAC_CTX *ctx, const unsigned char *data, size_t datalen)
    int EVP_MAC_final(EVP_MAC_CTX *ctx, unsigned char *out, size_t *outl, size_t outsize)
    EVP_CIPHER *EVP_CIPHER_fetch(void *libctx, const char *algorithm, const char *properties)
    EVP_CIPHER_CTX *EVP_CIPHER_CTX_new()
    void EVP_CIPHER_CTX_free(EVP_CIPHER_CTX *ctx)
    int EVP_CipherInit_ex2(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *cipher, const unsigned char *key,
                           const unsigned char *iv, int enc, const OSSL_PARAM *params)
