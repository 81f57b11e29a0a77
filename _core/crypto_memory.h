/* Memory for libcrypto, whose contexts hold key schedules. */

#ifndef TAPESEAL_CRYPTO_MEMORY_H
#define TAPESEAL_CRYPTO_MEMORY_H

/* Has libcrypto take all its memory from locked pages that are not dumped, and wipes what it frees. Works for a
   libcrypto of our own, before it was used: returns 1, or 0 where the process shares the system's. */
int crypto_memory_install(void);

#endif
