"""Upstream members that Kairos reads or calls on upstream's objects.

`sglang.srt.kairos.upstream` declares them; each of its Protocols has a class here or in the tables
of the hooks.
"""

from kairos_patches.hook import Hook, UpstreamDependency

HOOKS: list[Hook] = []
DEPENDENCIES = [
    UpstreamDependency(
        "sglang.srt.arg_groups.model_override_base.ResolvingConfig",
        "reads the options of a server as far as they are resolved",
    ),
    UpstreamDependency(
        "sglang.srt.configs.model_config.ModelConfig.__init__",
        "tells encoder-decoder models from others",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.decode.DecodeRequest",
        "a request and whether it waits for memory",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.utils.DisaggregationMode",
        "the roles of a server",
    ),
    UpstreamDependency(
        "sglang.srt.disaggregation.utils.ReqToMetadataIdxAllocator.available_size",
        "metadata buffers that are free",
    ),
    UpstreamDependency(
        "sglang.srt.lora.lora_manager.LoRAManager.validate_lora_batch",
        "tells whether one batch can hold a set of adapters",
    ),
    UpstreamDependency(
        "sglang.srt.managers.io_struct.AbortReq",
        "the message that aborts one request or all of them",
    ),
    UpstreamDependency(
        "sglang.srt.managers.io_struct.GenerateReqInput._normalize_sampling_params",
        "sampling parameters are one object, or a list of them",
    ),
    UpstreamDependency(
        "sglang.srt.managers.io_struct.GetInternalStateReqOutput",
        "a scheduler's part of /server_info",
    ),
    UpstreamDependency(
        "sglang.srt.managers.load_snapshot.LoadSnapshot",
        "the load of a scheduler",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.BaseFinishReason",
        "the reason for which a request ended, as an object",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.Req.__init__",
        "sets the attributes of a request",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.Req.finished",
        "tells whether a request has ended",
    ),
    UpstreamDependency(
        "sglang.srt.managers.schedule_batch.Req.update_finish_state",
        "ends a request that has its last token",
    ),
    UpstreamDependency(
        "sglang.srt.managers.scheduler_components.load_inquirer.SchedulerLoadInquirer.get_loads",
        "counts the load of a scheduler",
    ),
    UpstreamDependency(
        "sglang.srt.managers.scheduler_components.metrics_reporter.SchedulerMetricsReporter._init_metrics",
        "makes the device timer, where one is asked for",
    ),
    UpstreamDependency(
        "sglang.srt.managers.scheduler_components.output_streamer.SchedulerOutputStreamer.stream_output",
        "sends the new tokens of requests to the detokenizer",
    ),
    UpstreamDependency(
        "sglang.srt.managers.tp_worker.TpModelWorker.model_runner",
        "the model runner of a rank",
    ),
    UpstreamDependency(
        "sglang.srt.mem_cache.allocator.base.BaseTokenToKVPoolAllocator.available_size",
        "KV tokens that are free",
    ),
    UpstreamDependency(
        "sglang.srt.mem_cache.base_prefix_cache.BasePrefixCache.evictable_size",
        "KV tokens of cached prefixes that may be evicted",
    ),
    UpstreamDependency(
        "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.available_size",
        "rows of requests that are free",
    ),
    UpstreamDependency(
        "sglang.srt.model_executor.forward_batch_info.ForwardMode.is_decode",
        "tells decode steps from other batches",
    ),
    UpstreamDependency(
        "sglang.srt.model_executor.model_runner.ModelRunner.__init__",
        "has the LoRA manager, or None",
    ),
    UpstreamDependency(
        "sglang.srt.observability.metrics_collector.SchedulerMetricsCollector.__init__",
        "keeps the labels of its metrics",
    ),
    UpstreamDependency(
        "sglang.srt.observability.req_time_stats.SchedulerReqTimeStats.set_decode_prebuilt_finish_time",
        "stamps the first token of a decode server",
    ),
    UpstreamDependency(
        "sglang.srt.sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator.__init__",
        "makes the penalizers of a batch",
    ),
    UpstreamDependency(
        "sglang.srt.sampling.penaltylib.orchestrator._BatchedPenalizer.__init__",
        "a penalizer points at its orchestrator",
    ),
    UpstreamDependency(
        "sglang.srt.sampling.sampling_params.SamplingParams",
        "the output limit and custom_params of a request",
    ),
    UpstreamDependency(
        "sglang.srt.speculative.spec_info.SpeculativeAlgorithm.is_none",
        "tells whether speculative decoding is off",
    ),
]
