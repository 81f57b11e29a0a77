#include "rows.h"

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/crypto.h>

#include "memory.h"
#include "row_kernel.h"

enum {
    /* Rows are done slice by slice: keystream and rows stay in a core's L1 cache. */
    SLICE = 8 * 1024,
    SLICE_ROWS = 256,
    /* No kernel's max_size is above this. */
    MAX_KERNEL_SIZE = 1504,
    MAX_KERNEL_AAD = 512,
    /* Plaintext up to here is verified before it is written, though libcrypto makes it first. */
    BOUNCE = 16 * 1024,
    /* What a thread takes at a time, and the least that is worth starting one. */
    PORTION = 128 * 1024,
    MIN_PER_THREAD = 1024 * 1024,
    /* The time of a row without its bytes, in bytes. */
    ROW_COST = 64,
    MAX_IDLE = 64,
};

_Static_assert((MAX_KERNEL_SIZE + MAX_KERNEL_AAD) / BLOCK + 1 <= MAX_POWER, "a row fits the powers of H");
_Static_assert(MAX_KERNEL_SIZE + BLOCK <= SLICE && SLICE <= BOUNCE, "a row fits a slice, and that its memory");

/* What one thread works with. */
typedef struct row_worker {
    struct row_worker *next;
    EVP_CIPHER_CTX *ecb;
    EVP_CIPHER_CTX *gcm;
    secret_pages pages;        /* BOUNCE + STREAM_PADDING bytes: counter blocks, keystream, plaintext */
    row rows[SLICE_ROWS];
} row_worker;

struct row_key {
    const row_kernel *kernel;  /* NULL: libcrypto's GCM for every row */
    secret_pages pages;        /* the kernel_key */
    EVP_CIPHER_CTX *ecb;
    EVP_CIPHER_CTX *gcm;
    pthread_mutex_t lock;
    row_worker *idle;
    unsigned idle_count;
};

typedef struct {
    row_key *key;
    const row_batch *batch;
    unsigned char start[BLOCK];    /* GHASH of the associated data of all rows */
    uint64_t portion;
    int opening;
    _Atomic uint64_t next;
    _Atomic uint64_t bad;          /* first row that failed to open; UINT64_MAX: none */
    _Atomic int code;
} row_job;

static const row_kernel *const kernels[] = {
#if defined(__x86_64__)
    &row_kernel_vpclmul,
    &row_kernel_pclmul,
#elif defined(__aarch64__) && defined(__ORDER_LITTLE_ENDIAN__)
    &row_kernel_pmull,
#endif
    NULL,
};

const char *row_kernel_name(unsigned i)
{
    for (const row_kernel *const *kernel = kernels; *kernel != NULL; kernel++)
        if ((*kernel)->supported() && i-- == 0)
            return (*kernel)->name;
    return i == 0 ? "evp" : NULL;
}

static void wipe_worker(row_worker *worker)
{
    EVP_CIPHER_CTX_free(worker->ecb);
    EVP_CIPHER_CTX_free(worker->gcm);
    secret_pages_unmap(&worker->pages);
    free(worker);
}

static EVP_CIPHER_CTX *copy_context(const EVP_CIPHER_CTX *from)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    if (ctx != NULL && EVP_CIPHER_CTX_copy(ctx, from) != 1) {
        EVP_CIPHER_CTX_free(ctx);
        ctx = NULL;
    }
    return ctx;
}

static row_worker *make_worker(row_key *key)
{
    row_worker *worker = calloc(1, sizeof *worker);
    if (worker == NULL)
        return NULL;
    worker->ecb = copy_context(key->ecb);
    worker->gcm = copy_context(key->gcm);
    if (worker->ecb == NULL || worker->gcm == NULL ||
        secret_pages_map(&worker->pages, BOUNCE + STREAM_PADDING) != 0) {
        wipe_worker(worker);
        return NULL;
    }
    return worker;
}

static row_worker *take_worker(row_key *key)
{
    pthread_mutex_lock(&key->lock);
    row_worker *worker = key->idle;
    if (worker != NULL) {
        key->idle = worker->next;
        key->idle_count--;
    }
    pthread_mutex_unlock(&key->lock);
    return worker != NULL ? worker : make_worker(key);
}

static void give_worker(row_key *key, row_worker *worker)
{
    pthread_mutex_lock(&key->lock);
    int keep = key->idle_count < MAX_IDLE;
    if (keep) {
        worker->next = key->idle;
        key->idle = worker;
        key->idle_count++;
    }
    pthread_mutex_unlock(&key->lock);
    if (!keep)
        wipe_worker(worker);
}

/* The i-th thing of a column. Offsets are checked here, where they are used: nobody can change them in between. */
static int find(const row_column *column, uint64_t i, unsigned char **data, size_t *size)
{
    uint64_t from, to;
    if (column->offsets == NULL) {
        *data = column->data + (ptrdiff_t)i * column->step;
        *size = column->size;
        return OK;
    }
    if (column->offset_size == 4) {
        uint32_t pair[2];
        memcpy(pair, (const unsigned char *)column->offsets + 4 * i, sizeof pair);
        from = pair[0];
        to = pair[1];
    } else {
        uint64_t pair[2];
        memcpy(pair, (const unsigned char *)column->offsets + 8 * i, sizeof pair);
        from = pair[0];
        to = pair[1];
    }
    /* A negative offset is a huge one here. */
    if (from > to || to > column->size)
        return ERR_OFFSETS;
    *data = column->data + from;
    *size = (size_t)(to - from);
    return OK;
}

int row_offsets(const row_column *column, uint64_t count, int more, void *offsets, uint64_t *total)
{
    uint64_t limit = column->offset_size == 4 ? INT32_MAX : INT64_MAX;
    uint64_t sum = 0;
    for (uint64_t i = 0;; i++) {
        if (sum > limit)
            return ERR_SIZE;
        if (column->offset_size == 4) {
            uint32_t narrow = (uint32_t)sum;
            memcpy((unsigned char *)offsets + 4 * i, &narrow, sizeof narrow);
        } else {
            memcpy((unsigned char *)offsets + 8 * i, &sum, sizeof sum);
        }
        if (i == count)
            break;
        unsigned char *data;
        size_t size;
        if (find(column, i, &data, &size) != OK)
            return ERR_OFFSETS;
        if (more >= 0)
            sum += size + (size_t)more;
        else if (size >= (size_t)-more)
            sum += size - (size_t)-more;
    }
    *total = sum;
    return OK;
}

static uint64_t big_endian(uint64_t v)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    return __builtin_bswap64(v);
#else
    return v;
#endif
}

/* FORMAT 8: four zeros and a counter below 2^40. */
static void put_nonce(unsigned char *row, uint64_t counter)
{
    uint64_t last = big_endian(counter);
    memset(row, 0, NONCE_SIZE - sizeof last);
    memcpy(row + NONCE_SIZE - sizeof last, &last, sizeof last);
}

static int is_our_nonce(const unsigned char *row)
{
    uint64_t first;
    memcpy(&first, row, sizeof first);
    return big_endian(first) >> 8 == 0;
}

static void mark(row_job *job, uint64_t i, const row *r)
{
    if (job->batch->valid != NULL)
        job->batch->valid[i] = (unsigned char)r->valid;
    if (r->valid)
        return;
    if (r->size > 0)
        memset(r->plain, 0, r->size);
    uint64_t seen = atomic_load(&job->bad);
    while (i < seen && !atomic_compare_exchange_weak(&job->bad, &seen, i))
        ;
}

/* Finds row i; one that cannot be authentic has `valid` 0. */
static int prepare(const row_job *job, uint64_t i, row *r)
{
    const row_batch *batch = job->batch;
    size_t sealed_size;
    unsigned char *aad;
    if (find(&batch->plain, i, &r->plain, &r->size) != OK ||
        find(&batch->sealed, i, &r->sealed, &sealed_size) != OK || find(&batch->aad, i, &aad, &r->aad_size) != OK)
        return ERR_OFFSETS;
    /* EVP counts in int. */
    if (sealed_size > INT_MAX || r->aad_size > INT_MAX)
        return ERR_SIZE;
    r->aad = aad;
    r->lengths[0] = (uint64_t)r->size * 8;
    r->lengths[1] = (uint64_t)r->aad_size * 8;
    r->valid = 1;
    if (sealed_size != r->size + ROW_OVERHEAD) {
        if (!job->opening || sealed_size >= ROW_OVERHEAD || r->size != 0)
            return ERR_OFFSETS;
        r->valid = 0;
    } else if (!batch->any_nonce) {
        if (!job->opening) {
            put_nonce(r->sealed, batch->counter + i);
        } else {
            r->valid = is_our_nonce(r->sealed);
        }
    }
    return OK;
}

/* One row by libcrypto's GCM. */
static int do_apart(row_worker *worker, const row_job *job, row *r)
{
    unsigned char *body = r->sealed + NONCE_SIZE, *tag = body + r->size;
    if (!job->opening)
        return gcm_seal_with(worker->gcm, r->sealed, r->aad, r->aad_size, r->plain, r->size, body, tag);
    unsigned char *target = r->size <= BOUNCE ? worker->pages.data : r->plain;
    /* The copy would wait for memory that decryption leaves time to fetch. */
    for (size_t at = 0; at < r->size && target != r->plain; at += 64)
        __builtin_prefetch(r->plain + at, 1);
    int code = gcm_open_with(worker->gcm, r->sealed, r->aad, r->aad_size, body, r->size, tag, target);
    if (code == ERR_CRYPTO)
        return code;
    r->valid = code == OK;
    if (r->valid && target != r->plain)
        memcpy(r->plain, target, r->size);
    return OK;
}

/* The worker's first `count` rows, which are those of the batch from `first` on. */
static int do_slice(row_worker *worker, row_job *job, uint64_t first, size_t count)
{
    const row_kernel *kernel = job->key->kernel;
    const kernel_key *key = (const kernel_key *)(const void *)job->key->pages.data;
    const row *last = &worker->rows[count - 1];
    unsigned char *stream = worker->pages.data;
    size_t bytes = (size_t)(last->stream - stream) + ((last->size + BLOCK - 1) / BLOCK + 1) * BLOCK;
    int written = 0;
    kernel->counters(worker->rows, count);
    if (kernel->encrypt != NULL)
        kernel->encrypt(key, stream, bytes);
    else if (EVP_CipherUpdate(worker->ecb, stream, &written, stream, (int)bytes) != 1 || (size_t)written != bytes)
        return ERR_CRYPTO;
    if (!job->opening) {
        kernel->seal(key, worker->rows, count, job->start);
        return OK;
    }
    kernel->open(key, worker->rows, count, job->start);
    for (size_t r = 0; r < count; r++)
        if (!worker->rows[r].valid || job->batch->valid != NULL)
            mark(job, first + r, &worker->rows[r]);
    return OK;
}

/* Rows of one size, and their associated data too: all of a slice but three addresses a row stays as it was. */
static int do_even_rows(row_worker *worker, row_job *job, uint64_t from, uint64_t to, size_t *used)
{
    const row_batch *batch = job->batch;
    const size_t size = batch->plain.size, aad_size = batch->aad.size;
    const size_t need = ((size + BLOCK - 1) / BLOCK + 1) * BLOCK;
    size_t most = SLICE / need < SLICE_ROWS ? SLICE / need : SLICE_ROWS;
    if (most > to - from)
        most = (size_t)(to - from);
    for (size_t r = 0; r < most; r++)
        worker->rows[r] = (row){.stream = worker->pages.data + r * need, .size = size,
                                .aad_size = batch->aad.step == 0 ? 0 : aad_size, .lengths = {size * 8, aad_size * 8}};
    *used = most * need + STREAM_PADDING;
    unsigned char *plain = batch->plain.data + (ptrdiff_t)from * batch->plain.step;
    unsigned char *sealed = batch->sealed.data + (ptrdiff_t)from * batch->sealed.step;
    unsigned char *aad = batch->aad.data + (ptrdiff_t)from * batch->aad.step;
    const int numbered = !job->opening && !batch->any_nonce, checked = job->opening && !batch->any_nonce;
    for (uint64_t i = from; i < to;) {
        size_t count = to - i < most ? (size_t)(to - i) : most, r;
        for (r = 0; r < count; r++) {
            worker->rows[r].plain = plain;
            worker->rows[r].sealed = sealed;
            worker->rows[r].aad = aad;
            if (numbered)
                put_nonce(sealed, batch->counter + i + r);
            else if (checked && !is_our_nonce(sealed))
                break;
            plain += batch->plain.step;
            sealed += batch->sealed.step;
            aad += batch->aad.step;
        }
        int code = r > 0 ? do_slice(worker, job, i, r) : OK;
        if (code != OK)
            return code;
        i += r;
        if (r < count) {
            worker->rows[r].valid = 0;
            mark(job, i++, &worker->rows[r]);
            plain += batch->plain.step;
            sealed += batch->sealed.step;
            aad += batch->aad.step;
        }
    }
    return OK;
}

static int do_rows(row_worker *worker, row_job *job, uint64_t from, uint64_t to, size_t *used)
{
    const row_batch *batch = job->batch;
    int shared_aad = batch->aad.offsets == NULL && batch->aad.step == 0;
    if (job->key->kernel != NULL && batch->plain.offsets == NULL && batch->aad.offsets == NULL &&
        batch->plain.size <= job->key->kernel->max_size && (shared_aad || batch->aad.size <= MAX_KERNEL_AAD))
        return do_even_rows(worker, job, from, to, used);
    size_t count = 0, bytes = 0;
    for (uint64_t i = from; i < to; i++) {
        row next;
        int code = prepare(job, i, &next);
        if (code != OK)
            return code;
        int apart = !next.valid || job->key->kernel == NULL || next.size > job->key->kernel->max_size ||
                    (!shared_aad && next.aad_size > MAX_KERNEL_AAD);
        size_t need = ((next.size + BLOCK - 1) / BLOCK + 1) * BLOCK;
        if (count > 0 && (apart || count == SLICE_ROWS || bytes + need > SLICE)) {
            code = do_slice(worker, job, i - count, count);
            if (code != OK)
                return code;
            count = bytes = 0;
        }
        if (apart) {
            size_t touched = next.size < BOUNCE ? next.size : BOUNCE;
            *used = *used < touched ? touched : *used;
            code = next.valid ? do_apart(worker, job, &next) : OK;
            if (code != OK)
                return code;
            if (job->opening)
                mark(job, i, &next);
            continue;
        }
        if (shared_aad)
            next.aad_size = 0;
        next.stream = worker->pages.data + bytes;
        worker->rows[count++] = next;
        bytes += need;
        *used = *used < bytes + STREAM_PADDING ? bytes + STREAM_PADDING : *used;
    }
    return count > 0 ? do_slice(worker, job, to - count, count) : OK;
}

static void *work(void *argument)
{
    row_job *job = argument;
    row_worker *worker = take_worker(job->key);
    size_t used = 0;
    int code = worker == NULL ? ERR_CRYPTO : OK;
    while (code == OK && atomic_load(&job->code) == OK) {
        uint64_t from = atomic_fetch_add(&job->next, job->portion);
        if (from >= job->batch->count)
            break;
        uint64_t left = job->batch->count - from;
        code = do_rows(worker, job, from, from + (left < job->portion ? left : job->portion), &used);
    }
    if (code != OK)
        atomic_store(&job->code, code);
    if (worker != NULL) {
        OPENSSL_cleanse(worker->pages.data, used);
        give_worker(job->key, worker);
    }
    wipe_registers();
    return NULL;
}

static int run_job(row_job *job, unsigned threads)
{
    const row_batch *batch = job->batch;
    if (batch->count == 0)
        return OK;
    if (job->key->kernel != NULL && batch->aad.offsets == NULL && batch->aad.step == 0)
        job->key->kernel->absorb((const kernel_key *)(const void *)job->key->pages.data, batch->aad.data,
                                 batch->aad.size, job->start);
    uint64_t row_size = ROW_COST + (batch->plain.offsets == NULL ? batch->plain.size : batch->plain.size / batch->count);
    job->portion = row_size >= PORTION ? 1 : PORTION / row_size;
    uint64_t worth = batch->count / (MIN_PER_THREAD / row_size + 1);
    if (threads <= 1 || worth <= 1) {
        job->portion = batch->count;
        work(job);
    } else {
        run_in_threads(work, job, threads < worth ? threads : (unsigned)worth);
    }
    return atomic_load(&job->code);
}

int rows_seal(row_key *key, const row_batch *batch, unsigned threads)
{
    row_job job = {.key = key, .batch = batch, .bad = UINT64_MAX};
    return run_job(&job, threads);
}

int rows_open(row_key *key, const row_batch *batch, unsigned threads, uint64_t *bad)
{
    row_job job = {.key = key, .batch = batch, .opening = 1, .bad = UINT64_MAX};
    int code = run_job(&job, threads);
    *bad = atomic_load(&job.bad);
    return code == OK && *bad != UINT64_MAX ? ERR_TAG : code;
}

static int make_key(row_key **made, const unsigned char *secret, const row_kernel *kernel)
{
    static const unsigned char zeros[BLOCK];
    row_key *key = calloc(1, sizeof *key);
    if (key == NULL)
        return ERR_CRYPTO;
    key->kernel = kernel;
    pthread_mutex_init(&key->lock, NULL);
    key->ecb = EVP_CIPHER_CTX_new();
    key->gcm = EVP_CIPHER_CTX_new();
    EVP_CIPHER *ecb = EVP_CIPHER_fetch(NULL, "AES-256-ECB", NULL);
    EVP_CIPHER *gcm = EVP_CIPHER_fetch(NULL, "AES-256-GCM", NULL);
    unsigned char h[BLOCK];
    int n = 0;
    int done = key->ecb != NULL && key->gcm != NULL && ecb != NULL && gcm != NULL &&
               EVP_CipherInit_ex2(key->ecb, ecb, secret, NULL, 1, NULL) == 1 &&
               EVP_CIPHER_CTX_set_padding(key->ecb, 0) == 1 &&
               EVP_CipherInit_ex2(key->gcm, gcm, secret, NULL, 1, NULL) == 1 &&
               EVP_CipherUpdate(key->ecb, h, &n, zeros, BLOCK) == 1 && n == BLOCK &&
               secret_pages_map(&key->pages, sizeof(kernel_key)) == 0;
    EVP_CIPHER_free(ecb);
    EVP_CIPHER_free(gcm);
    if (done && kernel != NULL)
        kernel->init((kernel_key *)(void *)key->pages.data, secret, h);
    OPENSSL_cleanse(h, sizeof h);
    wipe_registers();
    if (!done) {
        row_key_free(key);
        return ERR_CRYPTO;
    }
    *made = key;
    return OK;
}

void row_key_free(row_key *key)
{
    if (key == NULL)
        return;
    while (key->idle != NULL) {
        row_worker *worker = key->idle;
        key->idle = worker->next;
        wipe_worker(worker);
    }
    EVP_CIPHER_CTX_free(key->ecb);
    EVP_CIPHER_CTX_free(key->gcm);
    secret_pages_unmap(&key->pages);
    pthread_mutex_destroy(&key->lock);
    free(key);
}

enum {
    TEST_ROWS = 5,
    TEST_SIZES = 100,
    TEST_AAD = 24,
};

/* SHA-256 of rows of each size below TEST_SIZES, TEST_ROWS at a time, with associated data of size % TEST_AAD bytes:
   one for all, then one a row. Key, plaintext and associated data are 0, 1, 2 and so on, and the counters begin with
   the size. tests/test_row_kernel.py computes it with another implementation. */
static const unsigned char known_answer[32] = {
    0x23, 0xfb, 0x07, 0x82, 0x0d, 0xe4, 0x07, 0x7a, 0xf1, 0x1d, 0xd7, 0x8a, 0x60, 0xdc, 0xb4, 0xea,
    0x44, 0x44, 0x1d, 0xf5, 0x76, 0x3f, 0x0d, 0x5a, 0x05, 0x56, 0xd1, 0xb5, 0x98, 0xc3, 0x91, 0xcf,
};

static int answer(const row_kernel *kernel, unsigned char digest[32])
{
    unsigned char pattern[TEST_ROWS * TEST_SIZES];
    unsigned char sealed[TEST_ROWS * (TEST_SIZES + ROW_OVERHEAD)], opened[TEST_ROWS * TEST_SIZES];
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (unsigned char)i;
    row_key *key = NULL;
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    int code = hash == NULL || EVP_DigestInit_ex2(hash, EVP_sha256(), NULL) != 1 ? ERR_CRYPTO : OK;
    if (code == OK)
        code = make_key(&key, pattern, kernel);
    for (size_t i = 0; i < 2 * TEST_SIZES && code == OK; i++) {
        size_t size = i / 2, row_size = size + ROW_OVERHEAD, aad_size = size % TEST_AAD;
        row_batch batch = {
            .plain = {.data = pattern, .size = size, .step = (ptrdiff_t)size},
            .sealed = {.data = sealed, .size = row_size, .step = (ptrdiff_t)row_size},
            .aad = {.data = pattern, .size = aad_size, .step = i % 2 ? (ptrdiff_t)aad_size : 0},
            .count = TEST_ROWS,
            .counter = size,
        };
        uint64_t bad;
        code = rows_seal(key, &batch, 1);
        if (code == OK && EVP_DigestUpdate(hash, sealed, TEST_ROWS * row_size) != 1)
            code = ERR_CRYPTO;
        batch.plain.data = opened;
        if (code == OK)
            code = rows_open(key, &batch, 1, &bad);
        if (code == OK && memcmp(opened, pattern, TEST_ROWS * size) != 0)
            code = ERR_SELF_TEST;
        /* The third row's tag is wrong now: that row, and no other, is refused and empty. */
        sealed[3 * row_size - 1 - i % TAG_SIZE] ^= 1;
        if (code == OK && (rows_open(key, &batch, 1, &bad) != ERR_TAG || bad != 2))
            code = ERR_SELF_TEST;
        for (size_t b = 0; b < TEST_ROWS * size && code == OK; b++)
            if (opened[b] != (b / size == 2 ? 0 : pattern[b]))
                code = ERR_SELF_TEST;
        if (code == ERR_TAG)
            code = ERR_SELF_TEST;
    }
    if (code == OK && EVP_DigestFinal_ex(hash, digest, NULL) != 1)
        code = ERR_CRYPTO;
    EVP_MD_CTX_free(hash);
    row_key_free(key);
    return code;
}

static int self_test(const row_kernel *kernel, unsigned i)
{
    /* 0: not tested yet. Of several threads here at once each tests, and all find the same. */
    static _Atomic int passed[sizeof kernels / sizeof *kernels];
    if (atomic_load(&passed[i]) == 0) {
        unsigned char digest[32];
        int code = answer(kernel, digest);
        if (code == ERR_CRYPTO)
            return code;
        if (code != OK || CRYPTO_memcmp(digest, known_answer, sizeof digest) != 0)
            return ERR_SELF_TEST;
        atomic_store(&passed[i], 1);
    }
    return OK;
}

int row_key_new(row_key **key, const unsigned char *secret, const char *kernel)
{
    unsigned i = 0;
    while (kernels[i] != NULL && (!kernels[i]->supported() || strcmp(kernels[i]->name, kernel) != 0))
        i++;
    if (kernels[i] == NULL && strcmp(kernel, "evp") != 0)
        return ERR_CRYPTO;
    int code = self_test(kernels[i], i);
    return code == OK ? make_key(key, secret, kernels[i]) : code;
}
