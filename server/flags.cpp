#include "server/flags.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "runtime/quantization/scheme.h"
#include "server/security/security_flags.h"

namespace shoal {
namespace {

constexpr const char* kSecret = "--api-key";
constexpr const char* kMask = "***";

std::string environment_name(const CLI::Option& option) {
  std::string name = "SHOAL_";
  for (const char c : option.get_lnames().front()) {
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

// Flags that are settings: not --help, --print-config or a positional.
bool is_setting(const CLI::Option& option) {
  return !option.get_lnames().empty() && option.get_configurable();
}

std::string joined(const std::vector<std::string>& values) {
  std::string text;
  for (const std::string& value : values) text += (text.empty() ? "" : ",") + value;
  return text;
}

void collect_names(const CLI::App& app, std::set<std::string>* names) {
  for (const CLI::Option* option : app.get_options()) {
    if (!option->get_envname().empty()) names->insert(option->get_envname());
  }
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    collect_names(*sub, names);
  }
}

}  // namespace

void add_engine_flags(CLI::App& app, EngineOptions& o) {
  const std::string group = "Engine";
  app.add_option("--model,model", o.model,
                 "Checkpoint folder, or org/name in the local Hugging Face cache")
      ->required()
      ->group(group);
  app.add_option("--revision", o.revision, "Revision of an org/name model in the cache")
      ->group(group)
      ->capture_default_str();
  app.add_option("--load-format", o.load_format,
                 "auto: weights from the checkpoint's files; dummy: made-up ones, only config.json (and the "
                 "tokenizer) is needed")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--device", o.device, "Device of the ranks; auto: GPUs where there are any")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--dtype", o.dtype, "Type of weights and activations; auto: bfloat16")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--kv-cache-dtype", o.kv_cache_dtype,
                 "Type of the KV cache; auto: as --dtype; fp8 (fp8_e4m3) and int8 halve it, with a scale "
                 "per token and head")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "fp8", "fp8_e4m3", "int8"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--quantization,-q", o.quantization,
                 std::string("Quantise weights while loading: none, ") + kSchemeNames)
      ->check([](const std::string& value) {
        if (value != "none") parse_scheme("--quantization", value);
        return std::string();
      })
      ->group(group)
      ->capture_default_str();
  app.add_option("--tensor-parallel-size,--tp,--tp-size", o.tensor_parallel_size,
                 "Ranks: processes over which heads and experts are split")
      ->check(CLI::Range(1, 4096))
      ->group(group)
      ->capture_default_str();
  app.add_flag("--enable-dp-attention", o.dp_attention,
               "Split requests over the ranks instead of attention heads")
      ->group(group);
  app.add_option("--expert-exchange", o.expert_exchange,
                 "How tokens reach experts; auto: by the size of the batch")
      ->check(CLI::IsMember({"auto", "replicated", "all-to-all"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--threads-per-rank", o.threads_per_rank,
                 "CPU threads of a rank; 0: cores / ranks")
      ->check(CLI::Range(0, 4096))
      ->group(group)
      ->capture_default_str();
  app.add_option("--max-model-len,--context-length", o.max_model_len,
                 "Tokens of prompt and output together; 0: what model and memory allow")
      ->check(CLI::Range(0, 1 << 30))
      ->group(group)
      ->capture_default_str();
  app.add_option("--max-num-seqs", o.max_num_seqs, "Sequences in one step at most")
      ->check(CLI::Range(1, 65536))
      ->group(group)
      ->capture_default_str();
  app.add_option("--max-num-batched-tokens", o.max_num_batched_tokens, "Tokens in one step at most")
      ->check(CLI::Range(1, 1 << 24))
      ->group(group)
      ->capture_default_str();
  app.add_option("--block-size", o.page_size, "Tokens in a page of the KV cache")
      ->check(CLI::Range(1, 4096))
      ->group(group)
      ->capture_default_str();
  app.add_option("--kv-cache-tokens", o.kv_cache_tokens,
                 "Tokens that the KV cache holds; 0: from --kv-cache-memory")
      ->check(CLI::NonNegativeNumber)
      ->group(group)
      ->capture_default_str();
  app.add_option("--kv-cache-memory", o.kv_cache_memory_bytes,
                 "Bytes of KV cache of a rank (4GiB); 0: what --gpu-memory-utilization leaves on a "
                 "GPU; 4 GiB or a quarter of what is free on the CPU")
      ->transform(CLI::AsSizeValue(false))
      ->group(group)
      ->capture_default_str();
  app.add_option("--gpu-memory-utilization", o.gpu_memory_utilization,
                 "Share of a GPU's memory for weights, KV cache and workspace together")
      ->check(CLI::Range(0.01, 1.0))
      ->group(group)
      ->capture_default_str();
  app.add_option("--gpu-memory-limit", o.gpu_memory_limit,
                 "Bytes (24GiB) of a rank for all of it, on a GPU in place of --gpu-memory-utilization; "
                 "also on the CPU")
      ->group(group);
  app.add_option("--swap-space", o.swap_space,
                 "Bytes (4GiB) of host memory of a rank for the KV of preempted requests and of prompts; 0: "
                 "none; auto: 4 GiB on a GPU, on the CPU 1 GiB with --kv-checkpoint-dir and else none")
      ->group(group)
      ->capture_default_str();
  app.add_option("--preemption-mode", o.preemption_mode,
                 "KV of preempted requests: swap, recompute, or auto: what is faster as measured")
      ->check(CLI::IsMember({"auto", "swap", "recompute"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--kv-checkpoint-dir", o.kv_checkpoint_dir,
                 "Directory that keeps the KV of prompts over restarts; of one server at a time")
      ->group(group);
  app.add_option("--kv-checkpoint-size", o.kv_checkpoint_size, "Bytes that a rank keeps there")
      ->group(group)
      ->capture_default_str();
  app.add_option("--expert-offload", o.expert_offload,
                 "Routed experts that the device cannot hold live in host memory, or on disk beyond "
                 "--host-memory; cpu: the CPU multiplies their rows; stream: they are copied to the device; "
                 "auto: by the number of rows; off: such a model is refused")
      ->check(CLI::IsMember({"off", "auto", "cpu", "stream"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--num-gpu-experts", o.num_gpu_experts,
                 "Routed experts of a layer that a rank's device holds at most; -1: as many as fit")
      ->check(CLI::Range(-1, 1 << 20))
      ->group(group)
      ->capture_default_str();
  app.add_option("--host-memory", o.host_memory,
                 "Bytes (512GiB) of host memory of a node for --expert-offload; without it what is free")
      ->group(group);
  app.add_option("--gemm-cache", o.gemm_cache,
                 "File of timed cuBLASLt algorithms; written at the first start, used from then on")
      ->group(group);
  app.add_flag("--enforce-eager", o.enforce_eager, "Run decode steps without CUDA graphs")
      ->group(group);
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", o.enable_prefix_caching,
               "Reuse the KV cache of prompts that begin alike (on by default)")
      ->group(group);
  app.add_flag("--async-scheduling,!--no-async-scheduling", o.async_scheduling,
               "GPUs: plan and queue a step while the one before runs (on by default)")
      ->group(group);
}

void add_serve_flags(CLI::App& app, ServeOptions& o) {
  add_observability_flags(app, o.observability);
  const std::string group = "Server";
  app.add_option("--host", o.host, "Address to listen on")->group(group)->capture_default_str();
  app.add_option("--port", o.port, "Port to listen on; 0: any free one, named in the ready line")
      ->check(CLI::Range(0, 65535))
      ->group(group)
      ->capture_default_str();
  app.add_option("--served-model-name", o.served_model_name, "Name of the model; default: --model")
      ->group(group);
  app.add_option("--chat-template", o.chat_template, "File with a chat template to use instead")
      ->group(group);
  app.add_option("--generation-config", o.generation_config,
                 "auto: default sampling from generation_config.json; vllm: ignore that file")
      ->check(CLI::IsMember({"auto", "vllm"}))
      ->group(group)
      ->capture_default_str();
  app.add_option("--max-queue", o.max_queue,
                 "Sequences alive at once, waiting ones included; more are RESOURCE_EXHAUSTED")
      ->check(CLI::Range(1, 1 << 20))
      ->group(group)
      ->capture_default_str();
  app.add_option("--drain-timeout", o.drain_timeout,
                 "Seconds that running calls get to finish after SIGTERM")
      ->check(CLI::Range(0.0, 86400.0))
      ->group(group)
      ->capture_default_str();
  app.add_option("--stream-stall-timeout", o.stream_stall_timeout,
                 "Seconds after which a stream whose client does not read is cancelled")
      ->check(CLI::Range(0.1, 86400.0))
      ->group(group)
      ->capture_default_str();
  app.add_option("--step-timeout", o.step_timeout,
                 "Seconds without a sign of life after which ranks with work are started again; longer than "
                 "the longest step")
      ->check(CLI::Range(0.5, 86400.0))
      ->group(group)
      ->capture_default_str();
  add_security_flags(app, o.security);
}

void add_placement_flags(CLI::App& app, RankPlacement& p) {
  const std::string group = "Nodes";
  app.add_option("--hosts", p.hosts,
                 "Ranks of each node: node0:4,node1:4; the first is this one. Default: all here, or where the "
                 "allocation of Slurm or of the MPI operator says")
      ->group(group);
  app.add_option("--hostfile", p.hostfile, "File of Open MPI instead: `NODE slots=RANKS` a line")
      ->group(group);
  app.add_option("--rank-interface", p.rank_interface,
                 "Network interfaces over which ranks talk, and no others: eth1, or ib0,eth1; needed for "
                 "several nodes, loopback on one")
      ->group(group);
  app.add_option("--launch-agent", p.launch_agent,
                 "Command that runs words on a node, as COMMAND NODE WORDS...; default: ssh -o BatchMode=yes")
      ->group(group);
  app.add_option("--launch-timeout", p.launch_timeout,
                 "Seconds that ranks get to start and to find each other, before they load; then they are started "
                 "again")
      ->check(CLI::Range(1.0, 86400.0))
      ->group(group)
      ->capture_default_str();
}

void add_health_flags(CLI::App& app, HealthOptions& o) {
  add_server_flags(app, o.address);
  app.add_option("--service", o.service, "Name of a service; default: the server as a whole");
  app.add_option("--timeout", o.timeout, "Seconds to wait for the answer")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
}

void add_chat_flags(CLI::App& app, ChatOptions& o) {
  app.add_option("message", o.message,
                 "The question; without one: stdin, or a session on a terminal");
  add_server_flags(app, o.address);
  app.add_option("--system", o.system, "System prompt");
  app.add_flag("--reasoning,!--no-reasoning", o.reasoning, "Show what the model thinks (default)");
  app.add_flag("--stats", o.stats, "Print time to first token and tokens per second");
  app.add_option("--timeout", o.timeout, "Seconds for one answer; 0: no limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  const std::string group = "Sampling (default: the server's)";
  app.add_option("--temperature", o.temperature, "0: the most likely token")->group(group);
  app.add_option("--top-p", o.top_p, "(0, 1]")->group(group);
  app.add_option("--top-k", o.top_k, "0: off")->group(group);
  app.add_option("--min-p", o.min_p, "[0, 1]")->group(group);
  app.add_option("--repetition-penalty", o.repetition_penalty, "1: off")->group(group);
  app.add_option("--presence-penalty", o.presence_penalty, "[-2, 2]")->group(group);
  app.add_option("--frequency-penalty", o.frequency_penalty, "[-2, 2]")->group(group);
  app.add_option("--seed", o.seed, "Same seed, same answer")->group(group);
  app.add_option("--max-tokens", o.max_tokens, "Tokens of the answer at most")->group(group);
  app.add_option("--stop", o.stop, "String that ends the answer; may be repeated")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->group(group);
}

void add_logits_flags(CLI::App& app, LogitsOptions& o) {
  add_engine_flags(app, o.engine);
  app.add_option("--tokens", o.tokens, "Token ids of the prompt: 1,2,3")->required();
  app.add_option("--out", o.out, "NumPy file to write: float32 [tokens, vocab_size]")->required();
  app.add_option("--greedy", o.greedy, "Also print so many greedily chosen tokens that follow")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--chunk", o.chunk, "Prefill in pieces of so many tokens; 0: in one piece")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--mtp-out", o.mtp_out,
                 "NumPy file for the multi-token-prediction layer's logits: [tokens - 1, vocab_size]");
  app.add_flag("--absorbed", o.absorbed, "Use the absorbed form of MLA for the prompt too");
}

void add_perplexity_flags(CLI::App& app, PerplexityOptions& o) {
  add_engine_flags(app, o.engine);
  app.add_option("--text", o.text, "File of UTF-8 text")->required();
  app.add_option("--context", o.context, "Tokens of a window; windows are independent")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--score-after", o.score_after,
                 "Score only what follows this token up to the next eos: the answers of dialogues");
  app.add_flag("--json", o.json, "JSON, for programs");
}

void add_quantize_flags(CLI::App& app, QuantizeCommandOptions& o) {
  app.add_option("--model", o.model, "Checkpoint folder, or org/name in the local Hugging Face cache")
      ->required();
  app.add_option("--revision", o.revision, "Revision of an org/name model in the cache")
      ->capture_default_str();
  app.add_option("--output", o.output,
                 "Folder to write: new, empty, or left by a run that was interrupted, which goes on")
      ->required();
  app.add_option("--scheme", o.scheme, std::string(kSchemeNames) + "; calibrated: " + kCalibratedNames)
      ->capture_default_str();
  app.add_option("--max-shard-size", o.max_shard_bytes, "Bytes of a file (4GiB)")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "CPU threads; 0: all cores")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_option("--device", o.device, "Device that runs the model to calibrate")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--calibration", o.calibration, "Calibrated schemes: file of text like what the model will see; without it Shoal's documentation");
  app.add_option("--calibration-tokens", o.calibration_tokens, "Tokens of it to use")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
}

void add_inspect_flags(CLI::App& app, InspectOptions& o) {
  app.add_option("--model,model", o.model,
                 "Checkpoint folder, or org/name in the local Hugging Face cache")
      ->required();
  app.add_option("--revision", o.revision, "Revision of an org/name model in the cache")
      ->capture_default_str();
  app.add_option("--tensor-parallel-size,--tp,--tp-size", o.tensor_parallel_size,
                 "Show what each of so many ranks would hold")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_flag("--tensors", o.tensors, "Show every tensor");
  app.add_flag("--json", o.json, "JSON, for programs");
}

void add_plan_flags(CLI::App& app, PlanCommandOptions& o) {
  app.add_option("--model,model", o.model,
                 "Checkpoint folder, folder with a config.json, org/name, or a published model (V3, "
                 "R1-Distill-Qwen-7B)")
      ->required();
  app.add_option("--revision", o.revision, "Revision of an org/name model in the cache")
      ->capture_default_str();
  app.add_option("--load-format", o.load_format,
                 "auto: weights from the checkpoint's files; dummy: made-up ones, only config.json (and the "
                 "tokenizer) is needed")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->capture_default_str();
  app.add_option("--gpus", o.gpus,
                 "8xH100, \"1xRTX 4090\", or NAME=bytes,GB/s,TFLOPS; without it this machine's CPU");
  app.add_option("--device", o.device, "cpu: this machine's CPU")
      ->check(CLI::IsMember({"auto", "cpu"}))
      ->capture_default_str();
  app.add_option("--host-memory", o.host_memory, "Bytes (512GiB) of host memory of a node");
  app.add_option("--quantization,-q", o.quantization,
                 std::string("Weights: none (as stored), ") + kSchemeNames)
      ->capture_default_str();
  app.add_option("--tensor-parallel-size,--tp,--tp-size", o.tensor_parallel_size,
                 "Ranks; 0: as many as GPUs")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  app.add_flag("--enable-dp-attention", o.dp_attention,
               "Split requests over the ranks instead of attention heads");
  app.add_option("--dtype", o.dtype, "Type of what is not quantised; auto: bfloat16")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--kv-cache-dtype", o.kv_cache_dtype,
                 "Type of the KV cache: auto, float32, bfloat16, fp8, int8")
      ->capture_default_str();
  app.add_option("--max-model-len,--context-length", o.max_model_len,
                 "Tokens of prompt and output together; 0: what model and memory allow")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  app.add_option("--max-num-seqs", o.max_num_seqs, "Sequences in one step at most")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--max-num-batched-tokens", o.max_num_batched_tokens, "Tokens in one step at most")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  app.add_option("--block-size", o.page_size, "Tokens in a page of the KV cache")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--expert-offload", o.expert_offload,
                 "Put routed experts that the device cannot hold into host memory, and what that cannot hold on "
                 "disk: off, auto, cpu or stream")
      ->check(CLI::IsMember({"off", "auto", "cpu", "stream"}))
      ->capture_default_str();
  app.add_option("--gpu-memory-utilization", o.gpu_memory_utilization,
                 "Share of a GPU's memory for weights, KV cache and workspace together")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  app.add_option("--gpu-memory-limit", o.gpu_memory_limit, "Bytes (24GiB) of a rank instead of that share");
  app.add_option("--swap-space", o.swap_space,
                 "Bytes (4GiB) of host memory of a rank for KV pages that leave the device; 0: none; auto: 4 GiB "
                 "on a GPU, on the CPU none")
      ->capture_default_str();
  app.add_flag("--json", o.json, "JSON, for programs");
}

void add_top_flags(CLI::App& app, TopOptions& o) {
  add_server_flags(app, o.address);
  app.add_option("--interval", o.interval, "Seconds between pictures")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  app.add_flag("--once", o.once, "One picture, as plain text");
}

void add_collect_env_flags(CLI::App& app, CollectEnvOptions& o) {
  app.add_flag("--json", o.json, "JSON, for programs");
}

void add_environment_twins(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (is_setting(*option)) option->envname(environment_name(*option));
  }
  for (CLI::App* sub : app.get_subcommands([](CLI::App*) { return true; })) {
    add_environment_twins(*sub);
  }
}

std::vector<std::string> unknown_environment(const CLI::App& app) {
  std::set<std::string> known;
  collect_names(app, &known);
  std::vector<std::string> unknown;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const std::string name = text.substr(0, text.find('='));
    if (name.rfind("SHOAL_", 0) == 0 && known.count(name) == 0) unknown.push_back(name);
  }
  std::sort(unknown.begin(), unknown.end());
  return unknown;
}

std::vector<std::string> non_default_args(const CLI::App& command) {
  std::vector<std::string> args;
  for (const CLI::Option* option : command.get_options()) {
    if (!is_setting(*option) || option->count() == 0) continue;
    const std::string name = "--" + option->get_lnames().front();
    args.push_back(name + "=" + (name == kSecret ? kMask : joined(option->results())));
  }
  return args;
}

std::string print_config(const CLI::App& command) {
  std::string text;
  for (const CLI::Option* option : command.get_options()) {
    if (!is_setting(*option)) continue;
    const std::string name = "--" + option->get_lnames().front();
    std::string value = option->count() > 0 ? joined(option->results()) : option->get_default_str();
    if (name == kSecret && !value.empty()) value = kMask;
    text += name + "=" + value + "\n";
  }
  return text;
}

std::vector<std::string> normalise_args(int argc, const char* const* argv) {
  std::vector<std::string> args;
  bool only_values = false;
  for (int i = 1; i < argc; ++i) {
    std::string arg = argv[i];
    if (only_values) {
      args.push_back(arg);
      continue;
    }
    only_values = arg == "--";
    if (arg == "-tp") {
      arg = "--tensor-parallel-size";
    } else if (arg.rfind("--", 0) == 0) {
      std::replace(arg.begin(), arg.begin() + std::min(arg.find('='), arg.size()), '_', '-');
    }
    args.push_back(arg);
  }
  return args;
}

}  // namespace shoal
