/* Rows by libcrypto's EVP interface: one context a thread, keyed once, and per row only a new nonce; also the floor. */

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "rows.h"

static int seal(EVP_CIPHER_CTX *ctx, const part *p)
{
    int n, last;
    for (uint64_t i = p->from; i < p->to; i++) {
        unsigned char *row = p->sealed + i * (p->size + OVERHEAD);
        number(p, i);
        TRY(EVP_CipherInit_ex2(ctx, NULL, NULL, row, 1, NULL) == 1);
        TRY(EVP_CipherUpdate(ctx, row + NONCE, &n, p->plain + i * p->size, (int)p->size) == 1);
        TRY(EVP_CipherFinal_ex(ctx, row + NONCE + n, &last) == 1);
        TRY(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG, row + NONCE + p->size) == 1);
    }
    return 0;
}

static int unseal(EVP_CIPHER_CTX *ctx, const part *p)
{
    int n, last;
    for (uint64_t i = p->from; i < p->to; i++) {
        unsigned char *row = p->sealed + i * (p->size + OVERHEAD), *plain = p->plain + i * p->size;
        TRY(EVP_CipherInit_ex2(ctx, NULL, NULL, row, 0, NULL) == 1);
        TRY(EVP_CipherUpdate(ctx, plain, &n, row + NONCE, (int)p->size) == 1);
        TRY(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG, row + NONCE + p->size) == 1);
        TRY(EVP_CipherFinal_ex(ctx, plain + n, &last) == 1);
    }
    return 0;
}

static int start(EVP_CIPHER_CTX *ctx, const char *name, int sealing)
{
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, name, NULL);
    int made = ctx != NULL && cipher != NULL && EVP_CipherInit_ex2(ctx, cipher, key, NULL, sealing, NULL) == 1;
    EVP_CIPHER_free(cipher);
    TRY(made);
    return 0;
}

static int gcm(const part *p)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    int code = start(ctx, "AES-256-GCM", p->sealing);
    if (code == 0)
        code = p->sealing ? seal(ctx, p) : unseal(ctx, p);
    EVP_CIPHER_CTX_free(ctx);
    return code;
}

/* One call for all blocks. `size` is that of a block here. */
static int ecb(const part *p)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    size_t at = p->from * p->size, bytes = (p->to - p->from) * p->size;
    int n, code = start(ctx, "AES-256-ECB", 1);
    if (code == 0 && EVP_EncryptUpdate(ctx, p->sealed + at, &n, p->plain + at, (int)bytes) != 1)
        code = __LINE__;
    EVP_CIPHER_CTX_free(ctx);
    return code;
}

/* Rows of `size` bytes from `plain` to `sealed`, or back. */
int rows(int sealing, unsigned char *plain, unsigned char *sealed, uint64_t count, size_t size, unsigned ahead,
         unsigned threads)
{
    part whole = {.loop = gcm, .sealing = sealing, .plain = plain, .sealed = sealed, .to = count, .size = size,
                  .ahead = ahead};
    return run(whole, threads);
}

/* AES alone: blocks of 16 bytes from `plain` to `sealed`. */
int blocks(unsigned char *plain, unsigned char *sealed, uint64_t count, unsigned threads)
{
    part whole = {.loop = ecb, .sealing = 1, .plain = plain, .sealed = sealed, .to = count, .size = 16};
    return run(whole, threads);
}

const char *library(void)
{
    return OpenSSL_version(OPENSSL_VERSION);
}
