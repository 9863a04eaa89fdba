// A plugin of QEMU: how many instructions of the emulated program have been executed. instructions.py uses it.
//
// The functions are those of QEMU's plugin interface, version 1, of which Debian has no header:
// https://www.qemu.org/docs/master/devel/tcg-plugins.html
#include <cstddef>
#include <cstdint>
#include <cstdio>

#define PLUGIN_EXPORT extern "C" __attribute__((visibility("default")))

using Plugin = uint64_t;
struct Block;  // instructions that QEMU translates together
enum Operation { kAdd };

extern "C" {
size_t qemu_plugin_tb_n_insns(const Block* block);
void qemu_plugin_register_vcpu_tb_exec_inline(Block* block, Operation operation, void* to, uint64_t value);
void qemu_plugin_register_vcpu_tb_trans_cb(Plugin id, void (*callback)(Plugin id, Block* block));
void qemu_plugin_register_atexit_cb(Plugin id, void (*callback)(Plugin id, void* data), void* data);
}

namespace {

uint64_t executed = 0;  // exact for a program with one thread

void count_block(Plugin, Block* block) {
  qemu_plugin_register_vcpu_tb_exec_inline(block, kAdd, &executed, qemu_plugin_tb_n_insns(block));
}

void report(Plugin, void*) { std::fprintf(stderr, "executed %llu\n", static_cast<unsigned long long>(executed)); }

}  // namespace

PLUGIN_EXPORT int qemu_plugin_version;
int qemu_plugin_version = 1;

PLUGIN_EXPORT int qemu_plugin_install(Plugin id, const void*, int, char**) {
  qemu_plugin_register_vcpu_tb_trans_cb(id, count_block);
  qemu_plugin_register_atexit_cb(id, report, nullptr);
  return 0;
}
