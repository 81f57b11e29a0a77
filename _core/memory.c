#include "memory.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/rand.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

static size_t page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Guard page, `size` bytes rounded up to pages, guard page; locked where that is allowed, and not dumped. */
static unsigned char *map_guarded(size_t size, size_t *mapping_size, int *locked, int wiped_by_fork)
{
    size_t page = page_size();
    size_t inner = (size + page - 1) / page * page;
    size_t total = inner + 2 * page;
    unsigned char *mapping = mmap(NULL, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
        return NULL;
    if (mprotect(mapping + page, inner, PROT_READ | PROT_WRITE) != 0) {
        int saved = errno;
        munmap(mapping, total);
        errno = saved;
        return NULL;
    }
    *locked = mlock(mapping + page, inner) == 0;
    /* A kernel that lacks one of these goes on: epoch and process id still refuse a fork. */
#ifdef MADV_DONTDUMP
    (void)madvise(mapping + page, inner, MADV_DONTDUMP);
#endif
#ifdef MADV_WIPEONFORK
    if (wiped_by_fork)
        (void)madvise(mapping + page, inner, MADV_WIPEONFORK);
#endif
    *mapping_size = total;
    return mapping;
}

int secret_pages_map(secret_pages *pages, size_t size)
{
    memset(pages, 0, sizeof *pages);
    if (size == 0 || size > ((size_t)1 << 30)) {
        errno = EINVAL;
        return -1;
    }
    size_t page = page_size();
    /* Against the upper guard, so that a read past the end faults; 16 for aligned vector loads. */
    size_t padded = (size + 15) / 16 * 16;
    unsigned char *mapping = map_guarded(padded, &pages->mapping_size, &pages->locked, 1);
    if (mapping == NULL)
        return -1;
    pages->mapping = mapping;
    pages->data = mapping + pages->mapping_size - page - padded;
    pages->size = size;
    return 0;
}

void secret_pages_wipe(secret_pages *pages)
{
    if (pages->mapping != NULL)
        OPENSSL_cleanse(pages->data, pages->size);
}

void secret_pages_unmap(secret_pages *pages)
{
    if (pages->mapping == NULL)
        return;
    secret_pages_wipe(pages);
    munmap(pages->mapping, pages->mapping_size);
    memset(pages, 0, sizeof *pages);
}

int secret_pages_map_shared(secret_pages *pages, size_t size)
{
    memset(pages, 0, sizeof *pages);
    pages->mapping = map_guarded(size, &pages->mapping_size, &pages->locked, 0);
    if (pages->mapping == NULL)
        return -1;
    pages->data = pages->mapping + page_size();
    pages->size = size;
    return 0;
}

void secret_pages_unmap_shared(unsigned char *data, size_t size)
{
    size_t page = page_size();
    munmap(data - page, (size + page - 1) / page * page + 2 * page);
}

#if defined(__x86_64__)
/* Only registers that no caller keeps anything in across a call. */
#define LOW_REGISTERS                                                                                              \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",      \
        "xmm13", "xmm14", "xmm15"

__attribute__((target("avx512f"))) static void wipe_avx512(void)
{
    __asm__ volatile("vzeroall\n\t"
                     "vpxorq %%zmm16, %%zmm16, %%zmm16\n\tvpxorq %%zmm17, %%zmm17, %%zmm17\n\t"
                     "vpxorq %%zmm18, %%zmm18, %%zmm18\n\tvpxorq %%zmm19, %%zmm19, %%zmm19\n\t"
                     "vpxorq %%zmm20, %%zmm20, %%zmm20\n\tvpxorq %%zmm21, %%zmm21, %%zmm21\n\t"
                     "vpxorq %%zmm22, %%zmm22, %%zmm22\n\tvpxorq %%zmm23, %%zmm23, %%zmm23\n\t"
                     "vpxorq %%zmm24, %%zmm24, %%zmm24\n\tvpxorq %%zmm25, %%zmm25, %%zmm25\n\t"
                     "vpxorq %%zmm26, %%zmm26, %%zmm26\n\tvpxorq %%zmm27, %%zmm27, %%zmm27\n\t"
                     "vpxorq %%zmm28, %%zmm28, %%zmm28\n\tvpxorq %%zmm29, %%zmm29, %%zmm29\n\t"
                     "vpxorq %%zmm30, %%zmm30, %%zmm30\n\tvpxorq %%zmm31, %%zmm31, %%zmm31"
                     :
                     :
                     : LOW_REGISTERS, "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24",
                       "xmm25", "xmm26", "xmm27", "xmm28", "xmm29", "xmm30", "xmm31");
}

__attribute__((target("avx"))) static void wipe_avx(void)
{
    __asm__ volatile("vzeroall" : : : LOW_REGISTERS);
}

void wipe_registers(void)
{
    if (__builtin_cpu_supports("avx512f"))
        wipe_avx512();
    else if (__builtin_cpu_supports("avx"))
        wipe_avx();
    else
        __asm__ volatile("pxor %%xmm0, %%xmm0\n\tpxor %%xmm1, %%xmm1\n\tpxor %%xmm2, %%xmm2\n\tpxor %%xmm3, %%xmm3\n\t"
                         "pxor %%xmm4, %%xmm4\n\tpxor %%xmm5, %%xmm5\n\tpxor %%xmm6, %%xmm6\n\tpxor %%xmm7, %%xmm7\n\t"
                         "pxor %%xmm8, %%xmm8\n\tpxor %%xmm9, %%xmm9\n\tpxor %%xmm10, %%xmm10\n\t"
                         "pxor %%xmm11, %%xmm11\n\tpxor %%xmm12, %%xmm12\n\tpxor %%xmm13, %%xmm13\n\t"
                         "pxor %%xmm14, %%xmm14\n\tpxor %%xmm15, %%xmm15"
                         :
                         :
                         : LOW_REGISTERS);
}
#elif defined(__aarch64__)
void wipe_registers(void)
{
    /* v8 to v15 are the caller's: whoever used them has restored them. */
    __asm__ volatile("movi v0.16b, #0\n\tmovi v1.16b, #0\n\tmovi v2.16b, #0\n\tmovi v3.16b, #0\n\t"
                     "movi v4.16b, #0\n\tmovi v5.16b, #0\n\tmovi v6.16b, #0\n\tmovi v7.16b, #0\n\t"
                     "movi v16.16b, #0\n\tmovi v17.16b, #0\n\tmovi v18.16b, #0\n\tmovi v19.16b, #0\n\t"
                     "movi v20.16b, #0\n\tmovi v21.16b, #0\n\tmovi v22.16b, #0\n\tmovi v23.16b, #0\n\t"
                     "movi v24.16b, #0\n\tmovi v25.16b, #0\n\tmovi v26.16b, #0\n\tmovi v27.16b, #0\n\t"
                     "movi v28.16b, #0\n\tmovi v29.16b, #0\n\tmovi v30.16b, #0\n\tmovi v31.16b, #0"
                     :
                     :
                     : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22",
                       "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}
#else
void wipe_registers(void)
{
}
#endif

void secret_copy(void *to, const void *from, size_t size)
{
    /* A byte at a time: memcpy uses vector registers. */
    volatile unsigned char *target = to;
    const volatile unsigned char *source = from;
    for (size_t i = 0; i < size; i++)
        target[i] = source[i];
}

/* Wiped by a fork. Holds 42 random bits above the low 22 bits of the process id (Linux has no larger ids), which
   tell a fork where the kernel cannot wipe. */
static _Atomic(_Atomic uint64_t *) sentinel_page;
/* Asking for the process id is a call of the system: half the time of sealing one row. */
static _Atomic int ask_process_id = 1;

static _Atomic uint64_t *sentinel(void)
{
    _Atomic uint64_t *here = atomic_load(&sentinel_page);
    if (here != NULL)
        return here;
    size_t mapping_size;
    int locked;
    unsigned char *mapping = map_guarded(sizeof *here, &mapping_size, &locked, 1);
    if (mapping == NULL)
        return NULL;
    _Atomic uint64_t *mine = (_Atomic uint64_t *)(void *)(mapping + page_size());
#ifdef MADV_WIPEONFORK
    int wiped = madvise(mapping + page_size(), page_size(), MADV_WIPEONFORK) == 0;
#else
    int wiped = 0;
#endif
    if (atomic_compare_exchange_strong(&sentinel_page, &here, mine)) {
        if (wiped)
            atomic_store(&ask_process_id, 0);
        return mine;
    }
    munmap(mapping, mapping_size);
    return here;
}

uint64_t process_epoch(void)
{
    _Atomic uint64_t *here = sentinel();
    if (here == NULL)
        return 0;
    const uint64_t pid_mask = ((uint64_t)1 << 22) - 1;
    uint64_t epoch = atomic_load(here);
    if (epoch != 0 && !atomic_load(&ask_process_id))
        return epoch;
    uint64_t pid = (uint64_t)getpid() & pid_mask;
    if (epoch != 0 && (epoch & pid_mask) == pid)
        return epoch;
    uint64_t fresh = 0;
    if (RAND_bytes((unsigned char *)&fresh, sizeof fresh) != 1)
        return 0;
    fresh = (fresh | ((uint64_t)1 << 63)) & ~pid_mask;
    fresh |= pid;
    /* Of several threads here at once, one sets the number and the others take it. */
    return atomic_compare_exchange_strong(here, &epoch, fresh) ? fresh : epoch;
}
